"""The experiment of this workdir: digits of 8 x 8 pixels, a MAE, then a classifier."""

from flax_adapt import config, defaults

MODEL = dict(
    kind="vit",
    image_size=8,
    patch_size=4,
    channels=1,
    width=8,
    depth=1,
    heads=2,
    mlp_dim=8,
    layer_norm_eps=1e-12,
    qkv_bias=True,
    gelu="erf",
    pooler=False,
    last_block=None,
    adaptor=None,
    decoder=dict(width=8, depth=1, heads=2, mlp_dim=8),
)
PIXELS = dict(image_size=8, channels=1, mean=(0.5,), std=(0.5,))
FEW = {**defaults.ALL, "per_class": 4}


def digits(**changes):
    return defaults.image_data("builtin:digits", "train", **PIXELS, **changes)


def get_config():
    labelled, test = (digits(subset={**FEW, "part": p}) for p in ("chosen", "rest"))
    evaluation = dict(
        every_steps=0, batch_size=64, data=test, metric="accuracy", mode="max"
    )
    pretrain = defaults.pretrain_stage(
        "pretrain",
        digits(),
        num_steps=12,
        batch_size=16,
        init_from="scratch",
        optim=defaults.pretrain_optim(lr=1e-3),
    )
    finetune = defaults.finetune_stage(
        "finetune",
        labelled,
        test,
        num_steps=40,
        batch_size=16,
        init_from="stage:pretrain",
        seeds=(0, 1),
        optim=defaults.finetune_optim(lr=1e-3, warmup_steps=1),
        eval=evaluation,
    )
    fields = dict(
        init="",
        model=MODEL,
        mesh=dict(data=1, fsdp=1, tensor=1),
        checkpoint=dict(every_steps=4, keep_last=1, keep_best=0),
        log_every_steps=4,
        evaluate=defaults.evaluate(labelled, test),
        stages=(pretrain, finetune),
    )
    return config.build(defaults.experiment(**fields))
