"""Our side of steps.py: a program of this library, its loss, its step and its FLOPs."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import flax_adapt as fa
from flax_adapt.base import keys, memory, rules
from flax_adapt.base.types import Text
from flax_adapt.models import batch_stats, masking
from flax_adapt.objectives import states
from flax_adapt.objectives.teacher import TABLE
from flax_adapt.plan import flops
from flax_adapt.train import sharding

CLASSES, MASK, CLS, SEP = 1_000, 103, 101, 102
# No number depends on it: the schedule's length.
STEPS = 1_000
CHECKED = 8  # examples that the losses are compared on
HEADS = fa.defaults.projector()


class Setting(NamedTuple):
    """A size, the examples of a batch, the dtype of products, tokens of a row, a loop or not."""

    size: str
    batch_size: int
    dtype: str
    length: int
    scan: bool = False


def fresh(model, seed):
    """Random parameters of a model, drawn by NumPy: nothing is compiled."""
    rng = np.random.default_rng(seed)

    def draw(name, leaf):
        if name.endswith(("scale", "var")):
            return np.ones(leaf.shape, np.float32)
        fan_in = math.prod(leaf.shape[:-1]) if name.endswith("kernel") else 2_500
        spread = fan_in**-0.5 if leaf.ndim > 1 else 0.0
        return np.float32(spread) * rng.standard_normal(leaf.shape, np.float32)

    shapes = jax.eval_shape(fa.models.init_params, model, jax.random.key(0))
    return rules.map_named(draw, shapes)


def image_arch(setting, task):
    """The model config of a ViT, or with the size "50" of a ResNet, for images of 224 pixels."""
    if setting.size == "50":
        return fa.models.resnet_config("50", image_size=224, channels=3)
    make = fa.models.mae_config if task == "mae" else fa.models.vit_config
    sizes = dict(image_size=224, patch_size=16, channels=3)
    return make(setting.size, **sizes)


def _rows(setting):
    rows = np.arange(setting.batch_size, dtype=np.int32)
    weight = np.ones(len(rows), np.float32)
    return {"position": rows, "index": rows, "weight": weight}


def _image(setting, seed=0):
    shape = (setting.batch_size, 224, 224, 3)
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def _noise(setting):
    shape = (setting.batch_size, 196)
    return np.random.default_rng(2).random(shape, np.float32)


def masked_images(setting):
    """A batch of images, and the noise that hides patches."""
    return {**_rows(setting), "image": _image(setting), "noise": _noise(setting)}


def labelled_images(setting):
    """A batch of images and labels."""
    labels = np.random.default_rng(3).integers(0, CLASSES, setting.batch_size)
    label = labels.astype(np.int32)
    return {**_rows(setting), "image": _image(setting), "label": label}


def two_views(setting):
    """A batch of two views of each image."""
    return {**_rows(setting), "views": (_image(setting), _image(setting, 1))}


def masked_rows(setting):
    """A batch of rows of tokens between CLS and SEP; 15 % of the words are hidden."""
    shape = (setting.batch_size, setting.length)
    rng = np.random.default_rng(0)
    tokens_BL = rng.integers(1_000, 30_000, shape).astype(np.int32)
    tokens_BL[:, 0], tokens_BL[:, -1] = CLS, SEP
    place_BL = np.broadcast_to(np.arange(setting.length, dtype=np.int32), shape)
    special_BL = (place_BL == 0) | (place_BL == setting.length - 1)
    words_BL = np.where(special_BL, -1, place_BL)
    ones_BL = np.ones_like(tokens_BL)
    text = Text(tokens_BL, np.zeros_like(tokens_BL), ones_BL, place_BL, words_BL)
    hidden_BL = (rng.random(shape) < 0.15) & ~special_BL
    seen_BL = np.where(hidden_BL, MASK, tokens_BL).astype(np.int32)
    return {
        **_rows(setting),
        "text": text,
        "hidden": masking.Hidden(seen_BL, hidden_BL),
    }


class Kind(NamedTuple):
    """A program: the task, the batch, the sections `objective` and `optim`, and options.

    options: further arguments of `models.build`. drawn: the entry of the batch that holds
    the mask. Our step draws it anew, as in training; both losses are compared with it.
    """

    task: str
    batch: Any
    objective: Any
    optim: Any
    options: dict[str, Any]
    drawn: str = ""


_PRETRAIN, _FINETUNE = fa.defaults.pretrain_optim, fa.defaults.finetune_optim
_MLM = functools.partial(fa.defaults.mlm, MASK)
_LABELS = dict(num_classes=CLASSES)
_DISTILL = Kind("mae", masked_images, fa.defaults.distill, _PRETRAIN, {}, "noise")
KINDS = {
    "mae": Kind("mae", masked_images, fa.defaults.reconstruct, _PRETRAIN, {}, "noise"),
    "distill": _DISTILL,
    "distill_stage": _DISTILL,
    "mlm": Kind(
        *("mlm", masked_rows, _MLM),
        *(functools.partial(fa.defaults.text_optim, STEPS), {}, "hidden"),
    ),
    "finetune": Kind(
        *("classify", labelled_images, fa.defaults.classify, _FINETUNE, _LABELS)
    ),
    "glad": Kind(*("classify", labelled_images, fa.defaults.glad, _FINETUNE, _LABELS)),
    "contrast": Kind(
        *("contrast", two_views, fa.defaults.contrast, _PRETRAIN),
        dict(projector=HEADS),
    ),
    "features": Kind("encoder", labelled_images, None, None, {}),
}


# Program -> the name of the encoder's parameters that its objective compares with.
FROZEN = {"distill": "teacher", "distill_stage": "teacher", "glad": "start"}


class Ours(NamedTuple):
    """Our program. batch: of NumPy arrays. stored: initial weights. teacher: {} or an encoder's.

    loss: () -> float, of the first CHECKED examples in float32 with the batch's mask.
    step: () -> None; wait: returns when all steps have ended. flops: of the mathematics of a
    step (2 for a multiply-add). begin: () -> None, what comes before the first step of a turn.
    """

    arch: dict[str, Any]
    task: str
    batch: dict[str, Any]
    stored: Any
    teacher: Any
    loss: Any
    step: Any
    wait: Any
    flops: float
    begin: Any = lambda: None


def _build(arch, kind, dtype):
    pooling = "mean" if arch["kind"] == "resnet" else "cls"
    fields = dict(dropout=0.0, drop_path=0.0, pooling=pooling, num_classes=0)
    return fa.models.build(arch, kind.task, dtype=dtype, **(fields | kind.options))


def make(name, setting):
    """Returns `Ours` of a key of KINDS."""
    kind = KINDS[name]
    if name == "mlm":
        arch = fa.models.bert_config("bert", setting.size)
    else:
        arch = image_arch(setting, kind.task)
    if name == "glad":
        arch = {**arch, "adaptor": fa.defaults.adaptor()}
    batch = kind.batch(setting)
    params = fresh(_build(arch, kind, "float32"), 0)
    if kind.objective is None:
        return _features(arch, kind, batch, params, setting)
    return _training(name, arch, kind, batch, params, setting)


def _features(arch, kind, batch, params, setting):
    dtype = setting.dtype

    def run(dtype, params, image):
        model = _build(arch, kind, dtype)
        return model.apply({"params": params}, image, "cls", method="embed")

    image, placed = jnp.asarray(batch["image"]), jax.device_put(params)
    compiled = {
        each: jax.jit(functools.partial(run, each)) for each in ("float32", dtype)
    }

    def loss():
        return float(jnp.mean(jnp.abs(compiled["float32"](placed, image[:CHECKED]))))

    last: Any = None

    def step():
        nonlocal last
        last = compiled[dtype](placed, image)

    def wait():
        jax.block_until_ready(last)

    traced = jax.make_jaxpr(functools.partial(run, "float32"))(placed, image)
    products = flops.count_products(traced.jaxpr)
    return Ours(arch, "encoder", batch, params, {}, loss, step, wait, products)


def _frozen(name, arch):
    """Returns {name of FROZEN: parameters of another encoder}, {} for other programs."""
    if name not in FROZEN:
        return {}
    fields = dict(dropout=0.0, drop_path=0.0, pooling="cls", num_classes=0)
    plain = {**arch, "adaptor": None}
    model = fa.models.build(plain, "encoder", dtype="float32", **fields)
    return {FROZEN[name]: fresh(model, 1)}


def _teacher_pass(objective, model):
    """(teacher, image) -> the table of its states, as a stage of distill computes it."""
    select = states.select_compared(objective.state, model, True)

    def run(params, image):
        how = (objective.layers, select)
        found = states.encode_selected(model, params, image, *how)
        return {f"{number:02d}": x_BUD for number, x_BUD in enumerate(found)}

    return jax.jit(run)


def _training(name, arch, kind, batch, stored, setting):
    dtype = setting.dtype
    frozen = _frozen(name, arch)
    teacher = frozen.get("teacher", {})
    mesh = fa.make_mesh(dict(data=-1, fsdp=1, tensor=1))
    sections = ConfigDict(kind.objective()), ConfigDict(kind.optim())
    models = {each: _build(arch, kind, each) for each in ("float32", dtype)}
    losses = {each: fa.objectives.build(sections[0], it) for each, it in models.items()}
    # The check compiles one block of each kind, so it always is a loop.
    looped = memory.bind(losses["float32"], fa.defaults.memory(scan=True))
    timed = memory.bind(losses[dtype], fa.defaults.memory(scan=setting.scan))
    params, running = batch_stats.split(stored)
    carry = fa.objectives.build_carry(sections[0], STEPS, running)
    tx = fa.optim.build(sections[1], STEPS, params)
    train_step = fa.make_train_step(timed, tx, mesh, carry=carry)
    if name == "distill_stage":
        encoder = sharding.put(frozen["teacher"], mesh)
        encode = _teacher_pass(sections[0], models[dtype])
        exact = _teacher_pass(sections[0], models["float32"])
        frozen = {TABLE: exact(encoder, batch["image"])}
    state = fa.create_state(params, tx, mesh, seed=0, frozen=frozen, carry=carry)
    drawn = {entry: rows for entry, rows in batch.items() if entry != kind.drawn}
    placed = fa.put_batch(drawn, mesh)
    first = fa.put_batch(jax.tree.map(lambda rows: rows[:CHECKED], batch), mesh)

    def begin():
        nonlocal state
        if name == "distill_stage":
            state = state.replace(frozen={TABLE: encode(encoder, placed["image"])})

    def step():
        nonlocal state
        state, _ = train_step(state, placed)

    def wait():
        jax.block_until_ready(state)

    def value(loss_fn, params, inputs, batch):
        key_B = keys.example_keys(jax.random.key(0), batch["position"])
        return loss_fn(params, inputs, batch, key_B)[0]

    def loss():
        compiled = jax.jit(functools.partial(value, looped))
        return float(compiled(state.params, state.loss_inputs, first))

    slope = jax.grad(functools.partial(value, losses["float32"]))
    traced = jax.make_jaxpr(slope)(state.params, state.loss_inputs, placed)
    products = flops.count_products(traced.jaxpr)
    calls = loss, step, wait, products, begin
    return Ours(arch, kind.task, batch, stored, teacher, *calls)
