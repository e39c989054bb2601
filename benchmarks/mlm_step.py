"""Tokens a second of one step of masked language modelling: ours beside transformers.

Run     pip install '.[parity]' && python benchmarks/mlm_step.py [--size=small]
Prints  one JSON line: the tokens a second (median step: forward, backward, AdamW; float32)
        of each, same CPU, in turns, and their ratio. 8 rows of 128 tokens, 15 % of them
        masked, no dropout. Sizes: base (BERT-base), small (4/256 of the same vocabulary).

Ours draws the mask within the step and projects a quarter of a row onto the vocabulary;
transformers gets a mask that is drawn once, and projects every token.
"""

import json
import os

import in_turns
import numpy as np
import torch
from absl import app, flags
from transformers import BertConfig, BertForMaskedLM

import flax_adapt as fa
from flax_adapt.base.types import Text

_SIZE = flags.DEFINE_enum("size", "base", ["small", "base"], "size of the model")
_THREADS = flags.DEFINE_integer(
    "threads", os.cpu_count(), "threads of torch; ours takes all cores"
)
_ROUNDS = flags.DEFINE_integer("rounds", 7, "timed steps of each")

BASE = fa.models.bert_config("bert", "B")
SIZES = {
    "base": BASE,
    "small": dict(BASE, width=256, depth=4, heads=4, mlp_dim=1024),
}
BATCH, LENGTH, MASK, CLS, SEP = 8, 128, 103, 101, 102


def tokens():
    """[B, L]: ids of words between CLS and SEP."""
    ids_BL = np.random.default_rng(0).integers(1_000, 30_000, (BATCH, LENGTH))
    ids_BL[:, 0], ids_BL[:, -1] = CLS, SEP
    return ids_BL.astype(np.int32)


def ours(arch, tokens_BL):
    """Our step on these tokens."""
    place_BL = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), tokens_BL.shape)
    special_BL = (place_BL == 0) | (place_BL == LENGTH - 1)
    text = Text(
        tokens_BL,
        np.zeros_like(tokens_BL),
        np.ones_like(tokens_BL),
        place_BL,
        np.where(special_BL, -1, place_BL),
    )
    batch = {
        "text": text,
        "position": np.arange(BATCH, dtype=np.int32),
        "weight": np.ones(BATCH, np.float32),
    }
    sections = (fa.defaults.mlm(mask_token_id=MASK), fa.defaults.text_optim(1_000))
    return in_turns.our_step(arch, "mlm", *sections, batch)


def theirs(arch, tokens_BL):
    """The same step with transformers and torch."""
    config = BertConfig(
        vocab_size=arch["vocab_size"],
        hidden_size=arch["width"],
        num_hidden_layers=arch["depth"],
        num_attention_heads=arch["heads"],
        intermediate_size=arch["mlp_dim"],
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertForMaskedLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.98))
    hidden_BL = np.random.default_rng(1).random(tokens_BL.shape) < 0.15
    masked_BL = np.where(hidden_BL, MASK, tokens_BL)
    labels_BL = np.where(hidden_BL, tokens_BL, -100)
    given = {"input_ids": masked_BL, "labels": labels_BL}
    given = {name: torch.from_numpy(ids).long() for name, ids in given.items()}

    def step():
        optimizer.zero_grad()
        model(**given).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def main(_):
    torch.set_num_threads(_THREADS.value)
    arch, tokens_BL = SIZES[_SIZE.value], tokens()
    steps = {"ours": ours(arch, tokens_BL), "transformers": theirs(arch, tokens_BL)}
    median = in_turns.median_seconds(steps, _ROUNDS.value)
    rate = {name: BATCH * LENGTH / seconds for name, seconds in median.items()}
    ratio = rate["ours"] / rate["transformers"]
    shape = dict(size=_SIZE.value, batch=BATCH, length=LENGTH, unit="tokens/s")
    print(json.dumps(dict(shape, **rate, ratio=ratio)))


if __name__ == "__main__":
    app.run(main)
