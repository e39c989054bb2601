"""Computes the goldens of text with transformers and torch, in float64.

    pip install torch transformers && python tests/parity/make_text_goldens.py

As make_goldens.py; written with torch 2.13.0 and transformers 5.23.0 (BERT, RoBERTa) and
5.24.0 (other families). Names of `text_inputs.CONFIGS` as arguments: only these.
"""

import json
import sys

import inputs
import make_goldens
import text_inputs
import torch
import transformers


def make(head, name, seed, **fields):
    """A transformers model with parameters from `inputs`, float64, no dropout.

    Tied parameters come once, under the first of their names.
    """
    model_class = getattr(
        transformers, text_inputs.STEMS[text_inputs.kind(name)] + head
    )
    config = model_class.config_class(**text_inputs.hugging_face_config(name), **fields)
    model = model_class(config).double().eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            value.copy_(torch.from_numpy(inputs.tensor(key, value.shape, seed)))
    return model


def shapes(model):
    """{"shapes": JSON of the parameters' shapes}."""
    rows = {key: list(value.shape) for key, value in model.named_parameters()}
    return {"shapes": json.dumps(rows)}


def arguments(name, tokens):
    arrays = text_inputs.batch(name)
    given = {
        "input_ids": torch.from_numpy(tokens).long(),
        "attention_mask": torch.from_numpy(arrays["real"]).long(),
    }
    if text_inputs.has_types(name):
        given["token_type_ids"] = torch.from_numpy(arrays["token_types"]).long()
    return given


def golden_mlm(name):
    """States of every layer, logits, loss, gradients; of some families the folder, too."""
    model = make("ForMaskedLM", name, text_inputs.MLM)
    arrays = text_inputs.batch(name)
    tokens = torch.from_numpy(arrays["tokens"]).long()
    labels = torch.where(torch.from_numpy(arrays["hidden"]) == 1, tokens, -100)
    given = arguments(name, text_inputs.masked_tokens(arrays))
    out = model(**given, labels=labels, output_hidden_states=True)
    out.loss.backward()
    stored = dict(logits=out.logits, loss=out.loss)
    stored |= {f"state_{i:02d}": state for i, state in enumerate(out.hidden_states)}
    make_goldens.store(
        f"mlm_{name}", stored | shapes(model) | make_goldens.grads(model)
    )
    if text_inputs.kind(name) in text_inputs.WRITTEN:
        model.float().save_pretrained(make_goldens.FOLDER / "texts" / name)


def golden_classifier(name):
    """Logits, loss, gradients; of a regression the logits and the loss."""
    given = arguments(name, text_inputs.batch(name)["tokens"])
    labels = {i: str(i) for i in range(text_inputs.NUM_CLASSES)}
    model = make(
        "ForSequenceClassification",
        name,
        text_inputs.CLASSIFIER,
        id2label=labels,
        problem_type="single_label_classification",
    )
    out = model(**given, labels=torch.from_numpy(text_inputs.labels(name)).long())
    out.loss.backward()
    stored = dict(logits=out.logits, loss=out.loss)
    make_goldens.store(
        f"text_classify_{name}", stored | shapes(model) | make_goldens.grads(model)
    )

    model = make(
        "ForSequenceClassification",
        name,
        text_inputs.REGRESSION,
        num_labels=1,
        problem_type="regression",
    )
    numbers = torch.from_numpy(text_inputs.numbers(name)).double()
    out = model(**given, labels=numbers)
    stored = dict(logits=out.logits, loss=out.loss)
    make_goldens.store(f"text_regress_{name}", stored | shapes(model))


def main():
    torch.set_num_threads(1)
    for name in sys.argv[1:] or text_inputs.CONFIGS:
        golden_mlm(name)
        golden_classifier(name)
    files = [*make_goldens.FOLDER.glob("mlm_*"), *make_goldens.FOLDER.glob("text_*")]
    total = sum(file.stat().st_size for file in files)
    print(f"{make_goldens.FOLDER}: {total} bytes in {len(files)} files of text")


if __name__ == "__main__":
    main()
