"""Tiny images and texts in files and tiny saved models, and configs made small enough."""

import numpy as np
from PIL import Image
from support import tiny, tiny_runs, tiny_text

from flax_adapt import data, weights

MODEL = {**tiny.MODEL, "channels": 3, "depth": 1}
PIXELS = dict(mean=(0.5,) * 3, std=(0.25,) * 3)
CLASSES = ("ant", "bee")


def image_folder(root, train=8, test=3, classes=CLASSES):
    """So many images of each class and split, all different; returns `root`."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for name in classes:
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


def mae_folder(path):
    """A ViTMAEForPreTraining folder; returns `path`."""
    model = tiny.build("mae", MODEL)
    weights.save_pretrained(path, model, tiny.params_of(model), **PIXELS)
    return path


def vit_folder(path):
    """A ViTModel folder: an encoder without a decoder; returns `path`."""
    model = tiny.build("encoder", {**MODEL, "decoder": None})
    weights.save_pretrained(path, model, tiny.params_of(model), **PIXELS)
    return path


def bert_folder(path, task="mlm"):
    """A BertForMaskedLM (or other) folder with its tokenizer; returns `path`."""
    model = tiny.build(task, {**tiny_runs.TEXT_MODEL, "depth": 1})
    tokenizer = tiny_text.bert_folder(path.parent / f"{path.name}_tokenizer")
    weights.save_pretrained(path, model, tiny.params_of(model), tokenizer=tokenizer)
    return path


def everything(root):
    """Sources and weights of all kinds, by the names that arguments are filled with."""
    return dict(
        images=f"folder:{image_folder(root / 'images')}",
        others=f"folder:{image_folder(root / 'others')}",
        texts=f"jsonl:{tiny_text.corpus_folder(root / 'texts')}",
        init=mae_folder(root / "mae"),
        vit=vit_folder(root / "vit"),
        bert=bert_folder(root / "bert"),
        encoder=bert_folder(root / "encoder", task="encoder"),
    )


def shrink(config):
    """Two steps a stage, one seed, a tiny model: `config` is changed in place.

    Shapes and constants are the same for all configs: one compiles for the others.
    """
    if config.model.kind == "vit":
        config.model.update(MODEL)
    config.checkpoint.update(every_steps=2, keep_last=1, keep_best=0)
    for section in data_sections(config):
        section.prefetch_batches = 1
        if section.modality == "image":
            section.update(image_size=MODEL["image_size"], channels=3, **PIXELS)
            section.num_threads = 1
        else:
            section.update(seq_len=tiny_runs.SEQ_LEN, buckets=())
    for stage in config.stages:
        steps = 2 if stage.optim.solve is None else 1
        stage.update(num_steps=steps, batch_size=8, seeds=(0,))
        stage.optim.update(lr=1e-3, warmup_steps=0)
        if stage.optim.recadam is not None:
            # The published t0: two steps are long before it.
            stage.optim.recadam.update(gamma=1.0, t0=250.0, k=0.5)
        if stage.sweep is not None:
            stage.sweep.lrs = stage.sweep.lrs[:2]
        if stage.model.projector is not None:
            stage.model.projector.update(hidden=8, width=8)
        if stage.eval is not None:
            stage.eval.batch_size = 256
    return config


def data_sections(config):
    for section in (config.evaluate, *config.more_evaluations):
        yield from (section.train, section.test)
        if section.source is not None:
            yield section.source
    for stage in config.stages:
        yield stage.data
        if stage.eval is not None:
            yield stage.eval.data
        if stage.replay is not None:
            yield from data.replay_sections(stage.replay)
