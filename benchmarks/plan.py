"""What `flax-adapt plan` says of the methods at full size on TPUs that are not there.

Run     pip install '.[tpu,cuda]' && python benchmarks/plan.py [--rows=mae_b,mae_l] \
            [--topologies=v5e:4x4,v5e:16x16,h100:8] [--store=runs/plan.jsonl]
        python benchmarks/plan.py --rows=mae_l,mae_h --topologies=v5e:4x4 --unrolled
Writes  benchmarks/results/plan.md, the tables of all rows that are in the store. A row is
        compiled once and added to the store, so that a run can be stopped and continued.
        bfloat16; parameters and batch are split over fsdp; no data and no weights.
        --unrolled compiles the same blocks one after the other instead of in a loop;
        --whole goes on until there is code, which takes several times as long. Each row is
        compiled in a process of its own.
"""

import importlib.metadata
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"  # before JAX starts: nothing runs on an accelerator
os.environ["XLA_FLAGS"] = (
    f"--xla_dump_to=runs/plan/{os.getpid()} --xla_dump_hlo_module_re=jit_update"
)

import plan_buffers
import plan_table
from absl import app, flags

from flax_adapt import defaults, models
from flax_adapt.base import config as configs
from flax_adapt.plan import plans
from flax_adapt.plan.topology import parse

DUMP = Path("runs/plan", str(os.getpid()))
_ROWS = flags.DEFINE_list("rows", [], "names of rows; all if there are none")
_TOPOLOGIES = flags.DEFINE_list(
    "topologies", ["v5e:4x4", "v5e:16x16", "h100:8"], "hardware"
)
_STORE = flags.DEFINE_string(
    "store", "runs/plan.jsonl", "file of the plans made so far"
)

_WHOLE = flags.DEFINE_bool("whole", False, "generate code, too")
_UNROLLED = flags.DEFINE_bool("unrolled", False, "blocks one after the other, no loop")

IMAGES = defaults.image_data("folder:none", "train")
TEXTS = dict(layout="packed", seq_len=512, label_field="")
MASK = 103  # [MASK] of bert-large-uncased


def mae(size, patch, **changes):
    """Masked pre-training of a ViT."""
    model = models.mae_config(size, image_size=224, patch_size=patch, channels=3)
    fields = dict(init_from="scratch", **changes)
    return model, defaults.pretrain_stage("stage", IMAGES, **fields)


def mae_of_one(size, patch, **changes):
    """The same with one block of the encoder and one of the decoder."""
    model, stage = mae(size, patch, **changes)
    return {**model, "depth": 1, "decoder": {**model["decoder"], "depth": 1}}, stage


def distill(size, patch, **changes):
    """Self-distillation of a ViT (S1)."""
    fields = dict(objective=defaults.distill(), teacher="stage:first")
    return mae(size, patch, **fields, **changes)


def contrast(size, patch, **changes):
    """MoCo-v3 of a ViT (S2)."""
    model = models.vit_config(size, image_size=224, patch_size=patch, channels=3)
    data = {**IMAGES, "views": defaults.MOCO_V3_VIEWS}
    heads = defaults.stage_model(projector=defaults.projector())
    fields = dict(init_from="scratch", objective=defaults.contrast(), model=heads)
    return model, defaults.pretrain_stage("stage", data, **fields, **changes)


def glad(size, patch, **changes):
    """GLAD of a ViT (S4), which stays near its initial weights."""
    model = models.vit_config(size, image_size=224, patch_size=patch, channels=3)
    options = defaults.stage_model(
        fresh=("head",), adaptor=defaults.adaptor(), num_classes=1_000
    )
    fields = dict(objective=defaults.glad(), model=options, eval=None)
    return model, defaults.finetune_stage("stage", IMAGES, IMAGES, **fields, **changes)


def bert(size, **changes):
    """Masked language modelling of rows of 512 tokens."""
    texts = defaults.text_data("jsonl:none", "train", "none", **TEXTS)
    model = models.bert_config("bert", size)
    return model, defaults.text_pretrain_stage("stage", texts, MASK, **changes)


def bert_distill(size, **changes):
    """Self-distillation of a masked language model (S1)."""
    objective = defaults.distill(defaults.mlm(MASK))
    return bert(size, objective=objective, teacher="stage:first", **changes)


# Name -> (title, function that makes model and stage, its arguments, examples a chip, kind
# of chip).
ROWS = {
    "mae_b": ("MAE ViT-B/16", mae, ("B", 16), 128, "v5e"),
    "mae_l": ("MAE ViT-L/16", mae, ("L", 16), 128, "v5e"),
    "mae_h": ("MAE ViT-H/14", mae, ("H", 14), 96, "v5e"),
    "distill_b": ("Self-distillation ViT-B/16", distill, ("B", 16), 64, "v5e"),
    "distill_l": ("Self-distillation ViT-L/16", distill, ("L", 16), 32, "v5e"),
    "contrast_b": ("MoCo-v3 ViT-B/16", contrast, ("B", 16), 32, "v5e"),
    "bert_b": ("MLM BERT-base, 512 tokens", bert, ("B",), 32, "v5e"),
    "bert_l": ("MLM BERT-large, 512 tokens", bert, ("L",), 32, "v5e"),
    "bert_distill_l": (
        "Self-distillation BERT-large, 512",
        bert_distill,
        ("L",),
        32,
        "v5e",
    ),
    "glad_b": ("GLAD ViT-B/16", glad, ("B", 16), 64, "v5e"),
    "mae_l_h100": ("MAE ViT-L/16", mae, ("L", 16), 64, "h100"),
}

# Rows that are compiled only when asked for.
CONTROLS = {
    "mae_l_one": ("MAE ViT-L/16, one block of each", mae_of_one, ("L", 16), 128, "v5e"),
}
KNOWN = ROWS | CONTROLS

# Kind of chip -> the package with its compiler.
COMPILERS = {"v5e": "libtpu", "h100": "jax-cuda12-pjrt"}


def config_of(name, topology, unrolled):
    """The config of a row on a topology."""
    _, make, arguments, images, _ = KNOWN[name]
    changes = dict(batch_size=images * parse(topology).chips)
    if unrolled:
        changes["memory"] = defaults.memory(remat="blocks")
    model, stage = make(*arguments, **changes)
    fields = dict(
        init="none",
        model=model,
        mesh=dict(data=1, fsdp=-1, tensor=1),
        evaluate=None,
        stages=(stage,),
    )
    config = configs.build(defaults.experiment(**fields))
    return plans.settle_for(parse(topology), config)


def make_plan(name, topology, unrolled, whole):
    """The plan of a row, and which versions compiled it."""
    (kind,) = plans.group_stages(config_of(name, topology, unrolled))
    begun = time.process_time()
    compiler = plans.compile_step if whole else plan_buffers.compiler(DUMP)
    plan = plans.plan_kind(kind, plans.find_hardware(topology), compiler)
    seconds = time.process_time() - begun
    packages = "jax", COMPILERS[KNOWN[name][-1]]
    versions = {package: importlib.metadata.version(package) for package in packages}
    head = {"row": name, "unrolled": unrolled, "whole": whole, "cpu_seconds": seconds}
    return {**head, "versions": versions, **plan}


def read(store):
    """The plans in the store, the last of each row and topology."""
    lines = store.read_text("utf-8").splitlines() if store.exists() else []
    made = map(json.loads, lines)
    return {(p["row"], p["topology"], p["unrolled"], p["whole"]): p for p in made}


def rows_left(store):
    """The rows that are asked for and not in the store."""
    kind = _UNROLLED.value, _WHOLE.value
    asked = itertools.product(_ROWS.value or ROWS, _TOPOLOGIES.value)
    rows = [(*row, *kind) for row in asked if row[1].startswith(KNOWN[row[0]][-1])]
    return [row for row in rows if row not in read(store)]


def main(argv):
    del argv
    store = Path(_STORE.value)
    store.parent.mkdir(parents=True, exist_ok=True)
    left = rows_left(store)
    if len(left) > 1:
        for name, topology, *_ in left:
            one = [f"--rows={name}", f"--topologies={topology}"]
            subprocess.run([sys.executable, *sys.argv, *one], check=True)
        return
    for row in left:
        line = json.dumps(make_plan(*row))
        with store.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)
    titles = {name: row[0] for name, row in KNOWN.items()}
    plan_table.write(read(store), titles)
    shutil.rmtree(DUMP, ignore_errors=True)
    os._exit(0)  # a compilation that goes on would keep the process


if __name__ == "__main__":
    app.run(main)
