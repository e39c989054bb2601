"""Every mistake of a stage that its config alone can show, with what is said of it.

MISTAKES: what the message contains -> (a sound stage, fields that spoil it, fields of the
experiment). A field is named with dots: "optim.lr".
"""

from support import tiny, tiny_resnet, tiny_text, watched_mistakes
from support.watched_mistakes import NORMED, SOLVED, TRIED

from flax_adapt import defaults

PLAIN, HEAD = tiny.pretrain(), tiny.finetune(init_from="scratch")
WARM = {**HEAD, "init_from": "stage:first"}
FIRST, FEW = tiny.pretrain("first"), tiny.digits(subset=tiny.FEW)
PROJECTOR = defaults.projector(layers=1, hidden=4, width=4, predictor_layers=0)
VIEWS = tiny.digits(views=(defaults.NO_AUGMENT,) * 2)
CONTRAST = tiny.pretrain(
    objective=defaults.contrast(),
    data=VIEWS,
    model=defaults.stage_model(projector=PROJECTOR),
)
QUEUE = {**CONTRAST, "objective": defaults.contrast(form="moco_v2", queue_size=16)}
GLAD = {
    **HEAD,
    "objective": defaults.glad(),
    "model": defaults.stage_model(fresh=("head",), adaptor=defaults.adaptor()),
}
DISTILL = tiny.distill(teacher="stage:first")
RESIZED = tiny.pretrain(model=defaults.stage_model(resize=defaults.resize(24)))
RESIZED = {**RESIZED, "init_from": "stage:first"}
LORA = {**WARM, "model": defaults.stage_model(lora=defaults.lora())}
REPLAY = {**HEAD, "replay": defaults.replay(FEW, 0.5)}
TEXT = dict(tiny_text.section("jsonl:x", "model"))
MLM = tiny.pretrain(objective=defaults.mlm(tiny.MASK), data=TEXT)
MLM_REPLAY = {**MLM, "replay": defaults.replay((TEXT, TEXT), 0.5)}
TEXTS = dict(model=tiny.TEXT_MODEL)
PAIRS = {
    **CONTRAST,
    "data": TEXT,
    "model": defaults.stage_model(dropout=0.1, projector=PROJECTOR),
}
RESNET = {**HEAD, "model": tiny_resnet.stage_model(fresh=("head",))}
RESNETS = dict(model=tiny_resnet.MODEL)
SGD = dict(momentum=0.9, nesterov=False)
MIXED = {**defaults.NO_MIXING, "operator": "mixup", "pairing": "any"}
MIXING = tiny.pretrain(objective={**defaults.reconstruct(), "mixing": MIXED})


def held(penalty, stage=WARM, **changes):
    """A stage with a penalty."""
    return {**stage, "penalties": (penalty,), **changes}


MISTAKES = {
    **watched_mistakes.MISTAKES,
    "optim.grad_reduce='half' is": (PLAIN, {"optim.grad_reduce": "half"}, {}),
    "log='wand' is unknown": (PLAIN, {}, {"log": "wand"}),
    "optim.mu_dtype='half' is": (PLAIN, {"optim.mu_dtype": "half"}, {}),
    "optim.mu_dtype='bfloat16' is of AdamW": (
        *(PLAIN, {"optim.sgd": SGD, "optim.mu_dtype": "bfloat16"}, {}),
    ),
    "optim.adafactor: min_factored=0 must": (
        *(PLAIN, {"optim.adafactor": defaults.adafactor(min_factored=0)}, {}),
    ),
    # Of memory.
    "memory.remat='all' is": (PLAIN, {"memory.remat": "all"}, {}),
    "memory.logit_chunks=0 must be": (PLAIN, {"memory.logit_chunks": 0}, {}),
    "memory.logit_chunks=2 must be 1": (PLAIN, {"memory.logit_chunks": 2}, {}),
    "memory.scan must be False": (RESNET, {"memory.scan": True}, RESNETS),
    # Of a head that is solved for.
    "optim.solve: l2=-1.0 must be": (SOLVED, {"optim.solve.l2": -1.0}, {}),
    "optim.solve is a solution in one step": (SOLVED, {"num_steps": 2}, {}),
    "optim.solve is of a new linear head": (SOLVED, {"model.head_norm": False}, {}),
    "optim.solve finds the head alone": (SOLVED, {"ema": defaults.ema()}, {}),
    # Of the stage itself.
    "seeds=() must be one or more": (PLAIN, {"seeds": ()}, {}),
    "seed=0 + -1 must lie in [0, 2147483647]": (PLAIN, {"seeds": (-1,)}, {}),
    "num_steps=0 must be at least 1": (PLAIN, {"num_steps": 0}, {}),
    "batch_size=0 must be at least 1": (PLAIN, {"batch_size": 0}, {}),
    "data.subset.draw='often' is unknown": (HEAD, {"data.subset.draw": "often"}, {}),
    # Of the objective, and what chooses by it.
    "objective.name='mea' is unknown": (PLAIN, {"objective.name": "mea"}, {}),
    "objective.masked.name='mea' is": (DISTILL, {"objective.masked.name": "mea"}, {}),
    "eval.metric='f1' is unknown": (HEAD, {"eval.metric": "f1"}, {}),
    "sweep.mode='best' is unknown": (TRIED, {"sweep.mode": "best"}, {}),
    "mixing.operator='mix' is": (MIXING, {"objective.mixing.operator": "mix"}, {}),
    "mixing.pairing='all' is": (MIXING, {"objective.mixing.pairing": "all"}, {}),
    "mixing.reading='all' is": (MIXING, {"objective.mixing.reading": "all"}, {}),
    "mixing.alpha=0.0 must be": (MIXING, {"objective.mixing.alpha": 0.0}, {}),
    "reads a mixture as": (MIXING, {"objective.mixing.reading": "imix"}, {}),
    "pairing='target_source' needs source": (
        *(MIXING, {"objective.mixing.pairing": "target_source"}, {}),
    ),
    # Of its data.
    "model.kind='cnn' is": (PLAIN, {}, dict(model={**tiny.MODEL, "kind": "cnn"})),
    "the task of model.kind='bert'='mae' is unknown": (PLAIN, {}, TEXTS),
    "gives text, but the model is a vit": (PLAIN, {"data": TEXT}, {}),
    "has 2 augmentations; objective 'reconstruct' needs 0": (
        PLAIN,
        {"data": VIEWS},
        {},
    ),
    # Of the optimizer.
    "optim.accum_steps=0 must be": (PLAIN, {"optim.accum_steps": 0}, {}),
    "optim.warmup_steps=-1 must": (PLAIN, {"optim.warmup_steps": -1}, {}),
    "optim.schedule='step' is unknown": (PLAIN, {"optim.schedule": "step"}, {}),
    "optim.decay='most' is unknown": (PLAIN, {"optim.decay": "most"}, {}),
    "optim.lars and optim.sgd are 2 optimizers": (
        *(HEAD, {"optim.lars": tiny.LARS, "optim.sgd": SGD}, {}),
    ),
    "optim.sgd: momentum=1.0 must": (
        *(HEAD, {"optim.sgd": {**SGD, "momentum": 1.0}}, {}),
    ),
    "nesterov=True needs a momentum above 0": (
        *(HEAD, {"optim.sgd": dict(momentum=0.0, nesterov=True)}, {}),
    ),
    "optim.layer_decay=0.5 must be 1.0": (RESNET, {"optim.layer_decay": 0.5}, RESNETS),
    "sweep.lrs=() must be one or more": (TRIED, {"sweep.lrs": ()}, {}),
    "sweep.lrs=(0.1, 0.1) must differ": (TRIED, {"sweep.lrs": (0.1, 0.1)}, {}),
    "sweep chooses by an evaluation, but eval is": (TRIED, {"eval": None}, {}),
    "sweep holds out a part of": (TRIED, {"data.subset.part": "rest"}, {}),
    "optim.mars_radius=-1.0 must be above 0": (WARM, {"optim.mars_radius": -1.0}, {}),
    "optim.mars_head_radius=-1.0 must": (WARM, {"optim.mars_head_radius": -1.0}, {}),
    "are parts of MARS": (WARM, {"optim.mars_norms": True}, {}),
    "optim.recadam: gamma=1.0, k=-1.0 and": (
        *(WARM, {"optim.recadam": defaults.recadam(gamma=1.0, k=-1.0)}, {}),
    ),
    "= 5 must be below 1: a step would leap": (
        *(WARM, {"optim.recadam": defaults.recadam(gamma=5000.0)}, {}),
    ),
    "optim.mars_radius needs weights to stay": (HEAD, {"optim.mars_radius": 1.0}, {}),
    "optim.mars_radius and model.lora do not": (LORA, {"optim.mars_radius": 1.0}, {}),
    "optim.lars: momentum=1.0 must lie": (
        *(HEAD, {"optim.lars": {**tiny.LARS, "momentum": 1.0}}, {}),
    ),
    # Of the model.
    "reshape='patch' must be several": (WARM, {"model.reshape": "patch"}, {}),
    "reshape='size' is unknown": (WARM, {"model.reshape": ("size",)}, {}),
    "has two rules for the same": (WARM, {"model.reshape": ("patch", "patch")}, {}),
    "model.projector must be None for objective 'reconstruct'": (
        *(PLAIN, {"model.projector": PROJECTOR}, {}),
    ),
    "'classify' needs batch_norm=False": (HEAD, {"model.projector": PROJECTOR}, {}),
    "model.adaptor must be given": (GLAD, {"model.adaptor": None}, {}),
    "a resnet has no attention": (
        *(RESNET, {"model.adaptor": defaults.adaptor()}, RESNETS),
    ),
    "model.adaptor must be None for objective 'reconstruct'": (
        *(PLAIN, {"model.adaptor": defaults.adaptor()}, {}),
    ),
    "model.resize.init='svd' is unknown": (RESIZED, {"model.resize.init": "svd"}, {}),
    "model.resize.tokens='cls' is": (RESIZED, {"model.resize.tokens": "cls"}, {}),
    "model.resize.noise=-1.0 must": (RESIZED, {"model.resize.noise": -1.0}, {}),
    "makes features of at least the model": (RESIZED, {"model.resize.width": 8}, {}),
    "init='pca' must be 'preserve' or 'random': an extra block": (
        RESIZED,
        {"model.resize": defaults.resize(16, kind="extra", mlp_dim=3, init="pca")},
        {},
    ),
    "must be 'random': after a post-norm block": (
        MLM,
        {"model.resize": defaults.resize(16, kind="extra", mlp_dim=3)},
        TEXTS,
    ),
    "must be 'random': there are no weights": (RESIZED, {"init_from": "scratch"}, {}),
    "init='pca' must be 'random' for a resnet": (
        *(RESNET, {"model.resize": {**tiny_resnet.RESIZE, "init": "pca"}}, RESNETS),
    ),
    "mlp_dim=3 must be given for kind='extra'": (
        RESIZED,
        {"model.resize.mlp_dim": 3},
        {},
    ),
    "model.grow_head is of objective 'classify'": (
        PLAIN,
        {"model.grow_head": True},
        {},
    ),
    "a stage trains one head: take": (HEAD, {"model.pooling": "cls_dist"}, {}),
    "model.head_norm is of a head": (PLAIN, {"model.head_norm": True}, {}),
    "model.head_norm changes what the head": (NORMED, {"model.fresh": ()}, {}),
    "model.lora.targets='keys' is": (LORA, {"model.lora.targets": ("keys",)}, {}),
    "targets=() must name a layer": (LORA, {"model.lora.targets": ()}, {}),
    "model.lora: rank=0 must be": (LORA, {"model.lora.rank": 0}, {}),
    "model.lora: alpha=0.0 must be": (LORA, {"model.lora.alpha": 0.0}, {}),
    "there are no weights to adapt": (LORA, {"init_from": "scratch"}, {}),
    "model.pooling='max' is unknown": (HEAD, {"model.pooling": "max"}, {}),
    # Of batch norm.
    "must be 1: batch norm goes by all": (NORMED, {"optim.accum_steps": 2}, {}),
    "penalties ['r3f'] and fisher are not of model.head_norm": (
        *(held(defaults.r3f(), NORMED), {}, {}),
    ),
    # Of contrast.
    "model.projector must be given for": (CONTRAST, {"model.projector": None}, {}),
    "'contrast' compares all examples": (CONTRAST, {"optim.accum_steps": 2}, {}),
    "make the two views of a text the same": (PAIRS, {"model.dropout": 0.0}, TEXTS),
    "momentum_schedule='up' is": (CONTRAST, {"objective.momentum_schedule": "up"}, {}),
    "objective.form='moco' is": (CONTRAST, {"objective.form": "moco"}, {}),
    "temperature=0.0 must be larger": (CONTRAST, {"objective.temperature": 0.0}, {}),
    "objective.momentum=2.0 must": (CONTRAST, {"objective.momentum": 2.0}, {}),
    "queue_size=0 must be at least 1": (QUEUE, {"objective.queue_size": 0}, {}),
    "queue_size=16 must be 0": (CONTRAST, {"objective.queue_size": 16}, {}),
    "predictor_layers=1 must be 0": (
        QUEUE,
        {"model.projector.predictor_layers": 1},
        {},
    ),
    "a queue has the width of the": (QUEUE, {"model.projector.layers": 0}, {}),
    # Of GLAD and self-distillation.
    "objective.regularizer='l2' is unknown": (
        GLAD,
        {"objective.regularizer": "l2"},
        {},
    ),
    "objective.preserve='all' is": (GLAD, {"objective.preserve": "all"}, {}),
    "objective.masked.name='x' is": (GLAD, {"objective.masked.name": "x"}, {}),
    "objective.weight=-1.0 must be": (GLAD, {"objective.weight": -1.0}, {}),
    "objective.state='all' is unknown": (GLAD, {"objective.state": "all"}, {}),
    "objective.layers=(9,) must name states": (DISTILL, {"objective.layers": (9,)}, {}),
    "objective.match='all' is unknown": (DISTILL, {"objective.match": "all"}, {}),
    "objective.reduce='max' is unknown": (DISTILL, {"objective.reduce": "max"}, {}),
    "objective.beta=0.0 must be": (DISTILL, {"objective.beta": 0.0}, {}),
    "objective.teacher_cache_bytes=-1 must be": (
        DISTILL,
        {"objective.teacher_cache_bytes": -1},
        {},
    ),
    "masked_weight=-1.0 must": (DISTILL, {"objective.masked_weight": -1.0}, {}),
    "objective.weight=-2.0 must be": (DISTILL, {"objective.weight": -2.0}, {}),
    # Of penalties.
    "penalties.name='l2' is": (held({**defaults.l2_sp(), "name": "l2"}), {}, {}),
    "['r3f', 'r3f']: each can be there once": (
        *(WARM, {"penalties": (defaults.r3f(),) * 2}, {}),
    ),
    "'r3f' weight=-1.0 must be": (held(defaults.r3f(weight=-1.0)), {}, {}),
    "'l2_sp' needs weights to stay": (held(defaults.l2_sp(), HEAD), {}, {}),
    "'r3f' compares classes": (held(defaults.r3f(), PLAIN), {}, {}),
    "'er' is of examples of earlier tasks": (held(defaults.er()), {}, {}),
    "'l2_sp' alpha=-1.0 and": (held(defaults.l2_sp(alpha=-1.0)), {}, {}),
    "'r3f' noise='pink' must": (held(defaults.r3f(noise="pink")), {}, {}),
    "'r3f' eps=0.0 must": (held(defaults.r3f(eps=0.0)), {}, {}),
    "'lwf' temperature=0.0 must": (
        *(held(defaults.lwf("stage:first", temperature=0.0)), {}, {}),
    ),
    "names 2 stages for 1 sources": (
        *(held(defaults.der(("stage:first",) * 2), REPLAY), {}, {}),
    ),
    "must be 'stage:NAME' of a stage with": (held(defaults.ewc("stage:first")), {}, {}),
    "keeps no classifier": (held(defaults.lwf("stage:first")), {}, {}),
    "fisher.labels='true' is": (HEAD, {"fisher": defaults.fisher(labels="true")}, {}),
    "num_examples=-1 must be": (HEAD, {"fisher": defaults.fisher(num_examples=-1)}, {}),
    "fisher.batch_size=0": (HEAD, {"fisher": defaults.fisher(batch_size=0)}, {}),
    "fisher.decay=2.0 must": (HEAD, {"fisher": defaults.fisher(decay=2.0)}, {}),
    "draws classes, which objective": (PLAIN, {"fisher": defaults.fisher()}, {}),
    "classifier that is kept": (DISTILL, {"fisher": defaults.fisher()}, {}),
    "ema.schedule='up' is": (PLAIN, {"ema": defaults.ema(schedule="up")}, {}),
    "ema.momentum=2.0 must": (PLAIN, {"ema": defaults.ema(momentum=2.0)}, {}),
    # Of replay.
    "replay.schedule='up' is unknown": (REPLAY, {"replay.schedule": "up"}, {}),
    "replay.sampling='all' is unknown": (REPLAY, {"replay.sampling": "all"}, {}),
    "must be numbers >= 0, one of them > 0": (REPLAY, {"replay.ratio": -1.0}, {}),
    "differ, but replay.schedule is": (REPLAY, {"replay.final_ratio": 1.0}, {}),
    "must all be 0 for replay.sampling='joint'": (
        *(REPLAY, {"replay.sampling": "joint"}, {}),
    ),
    "replay.seed=-1 must be >= 0": (REPLAY, {"replay.seed": -1}, {}),
    "replay.buffer_size=-1 must be": (REPLAY, {"replay.buffer_size": -1}, {}),
    "replay.data=() must name": (REPLAY, {"replay.data": ()}, {}),
    "replay.data.channels=3 must be that": (REPLAY, {"replay.data.channels": 3}, {}),
    "replay.data: label_kind must be the same for all": (
        *(MLM_REPLAY, {"replay.data.1.label_kind": "number"}, TEXTS),
    ),
    # Of what it refers to.
    "do not fit: 'distill' needs a teacher": (DISTILL, {"teacher": "none"}, {}),
    "'stage:frist' is no earlier stage; there are: first": (
        *(WARM, {"init_from": "stage:frist"}, {}),
    ),
    "but the config's `init` is empty": (WARM, {"init_from": "pretrained"}, {}),
}


def changed(section, field, value):
    """The section with another value in `field`, such as "replay.data.1.label_kind"."""
    name, _, rest = field.partition(".")
    key = int(name) if isinstance(section, tuple) else name
    new = changed(section[key], rest, value) if rest else value
    if isinstance(section, tuple):
        return (*section[:key], new, *section[key + 1 :])
    return {**section, key: new}


def spoilt(text):
    """The config of a mistake, in its last stage."""
    section, changes, experiment = MISTAKES[text]
    for field, value in changes.items():
        section = changed(section, field, value)
    # Only models of images follow the first stage.
    stages = (section,) if experiment else (FIRST, section)
    return tiny.experiment(*stages, **experiment)
