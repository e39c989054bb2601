"""Tiny experiments: of each modality pre-train, self-distil, fine-tune; and contrast."""

from support import tiny, tiny_text

from flax_adapt import defaults

VOCABULARY = tiny_text.VOCABULARY
TEXT_MODEL = {**tiny.TEXT_MODEL, "vocab_size": len(VOCABULARY)}
SEQ_LEN = 16


def experiment(name, root, **changes):
    """The experiment; `root` holds what it reads (the same for all its workdirs)."""
    return EXPERIMENTS[name](root, **changes)


def images(root, **changes):
    del root
    stages = (tiny.pretrain(), tiny.distill(), tiny.finetune())
    return tiny.experiment(*stages, **changes)


def text_data(root, split, **changes):
    fields = dict(seq_len=SEQ_LEN, buckets=(8, 12), **changes)
    source, tokenizer = f"jsonl:{root / 'texts'}", str(root / "tokenizer")
    return defaults.text_data(source, split, tokenizer, **fields)


def texts(root, **changes):
    tiny_text.corpus_folder(root / "texts")
    tiny_text.bert_folder(root / "tokenizer")
    mask_token_id = VOCABULARY.index("[MASK]")
    masked = {**defaults.mlm(mask_token_id), "max_masked_fraction": 0.5}
    packed, heldout = (
        text_data(root, split, layout="packed", label_field="")
        for split in ("train", "test")
    )
    fields = dict(num_steps=6, batch_size=16, optim=defaults.text_optim(6, lr=1e-3))
    pretrain = defaults.text_pretrain_stage(
        "pretrain",
        packed,
        mask_token_id,
        **fields,
        objective=masked,
        init_from="scratch",
        eval=dict(
            every_steps=3, batch_size=8, data=heldout, metric="perplexity", mode="min"
        ),
    )
    distill = {
        **pretrain,
        "name": "distill",
        "objective": defaults.distill(masked),
        "teacher": "stage:pretrain",
    }
    train, test = text_data(root, "train"), text_data(root, "test")
    finetune = defaults.text_finetune_stage(
        "finetune",
        train,
        test,
        "pooler",
        num_steps=4,
        optim=defaults.text_finetune_optim(4, lr=1e-3),
        seeds=(0,),
        init_from="stage:pretrain",
    )
    fields = dict(model=TEXT_MODEL, evaluate=defaults.evaluate(train, test))
    return tiny.experiment(pretrain, distill, finetune, **{**fields, **changes})


# Small heads for tiny models.
HEADS = dict(hidden=8, width=8)
MOCO_V2 = dict(layers=2, predictor_layers=0, batch_norm=False)
MIXING = dict(operator="cutmix", alpha=1.0, pairing="target_source", reading="imix")


def contrast(name, views, **changes):
    """A stage of contrast on digits 0 to 3, with digits of all classes replayed."""
    few = {**defaults.ALL, "per_class": 8}
    target = tiny.digits(subset={**few, "seed": 1}, views=views)
    fields = dict(
        num_steps=6,
        batch_size=16,
        init_from="scratch",
        replay=defaults.replay(tiny.digits(), 0.5, sampling="stratified"),
        optim=defaults.pretrain_optim(lr=1e-3, freeze=("encoder/patch_embed/.*",)),
        eval=None,
    )
    return defaults.pretrain_stage(name, target, **{**fields, **changes})


def contrasts(root, **changes):
    """MoCo-v3 with mixing, and MoCo-v2 with a queue of three batches."""
    del root
    plain = {**defaults.NO_AUGMENT, "flip": True, "min_crop_area": 0.5}
    views = (plain, {**plain, "solarize_probability": 0.5})
    options = defaults.pretrain_stage("", {})["model"]
    v3 = contrast(
        "moco_v3",
        views,
        objective=defaults.contrast(mixing=MIXING),
        model={**options, "projector": defaults.projector(**HEADS)},
    )
    v2 = contrast(
        "moco_v2",
        views,
        objective=defaults.contrast(form="moco_v2", queue_size=48, momentum=0.9),
        model={**options, "projector": defaults.projector(**HEADS, **MOCO_V2)},
    )
    return tiny.experiment(v3, v2, **changes)


def resizes(root, **changes):
    """A MAE, expanded; narrowed to fit its data and a replayed source; and a classifier."""
    del root
    wide, narrow = (
        defaults.stage_model(resize=defaults.resize(*width, **fields))
        for width, fields in (((24,), {}), ((8,), dict(init="pca", relu=True)))
    )
    optim = defaults.pretrain_optim(lr=1e-3, freeze=(r"(.*/)?position",))
    fields = dict(init_from="stage:pretrain", optim=optim)
    few = tiny.digits(subset={**defaults.ALL, "per_class": 8})
    replayed = defaults.replay(tiny.digits(), 0.5)
    projector = defaults.projector(
        **HEADS, layers=2, predictor_layers=0, batch_norm=False
    )
    stages = (
        tiny.pretrain(),
        tiny.pretrain("expand", **fields, model=wide),
        tiny.pretrain("narrow", **fields, model=narrow, data=few, replay=replayed),
        tiny.finetune(
            init_from="stage:expand",
            model={**wide, "fresh": ("head", "projector"), "projector": projector},
        ),
    )
    return tiny.experiment(*stages, **changes)


# All but adaptors.
BACKBONE = r"encoder/(?!(.*/)?adaptor/).*"


def glads(root, **changes):
    """GLAD with each regularizer, one after the other, and adaptors alone."""
    del root

    def stage(name, init_from, **fields):
        options = dict(dropout=0.1, fresh=("head",), adaptor=defaults.adaptor())
        model = defaults.stage_model(**options)
        return tiny.finetune(name, init_from=init_from, model=model, **fields)

    frozen = defaults.finetune_optim(lr=1e-2, warmup_steps=1, freeze=(BACKBONE,))
    stages = (
        tiny.pretrain(),
        stage(
            "masked", "stage:pretrain", objective=defaults.glad(regularizer="masked")
        ),
        stage("preserve", "stage:masked", objective=defaults.glad()),
        stage("adaptors", "stage:preserve", optim=frozen),
        tiny.pretrain("further", init_from="stage:masked"),
    )
    return tiny.experiment(*stages, **changes)


def watches(root, **changes):
    """A stage that stops early by kNN, and one that is rolled back by its features."""
    del root
    few = tiny.digits(subset={**tiny.FEW, "per_class": 20})

    def further(name, metric, lr, **fields):
        how = dict(every_steps=1, patience=2, on_hurt="rollback", examples=256)
        optim = defaults.pretrain_optim(lr=lr)
        watch = defaults.watch(metric, **{**how, **fields})
        fields = dict(init_from="stage:pretrain", watch=watch, optim=optim)
        return tiny.pretrain(name, num_steps=8, **fields)

    stages = (
        tiny.pretrain(num_steps=2),
        further("near", "target/knn+pool/rankme", 3e-3),
        further("wild", "pool/rankme", 0.1, patience=0),
        tiny.pretrain("held", watch=defaults.watch("held_out/loss", every_steps=2)),
    )
    evaluate = defaults.evaluate(few, few, pooling="mean")
    return tiny.experiment(*stages, **{"evaluate": evaluate, **changes})


MODALITIES = {"image": images, "text": texts}
EXPERIMENTS = {**MODALITIES, "contrast": contrasts, "resize": resizes, "glad": glads}
EXPERIMENTS |= {"watch": watches}
