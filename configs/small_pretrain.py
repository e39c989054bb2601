"""Pre-train a small MAE ViT from scratch on any images: hours become minutes on a CPU.

Run     flax-adapt run --workdir=runs/small \
            --config=small_pretrain:dataset=tfds:cifar10,data_dir=DIR
        dataset   cub, dtd, dogs, flowers (TFDS), or any source: folder:PATH, tfds:NAME
        data_dir  where TFDS finds its data sets
        train_split, test_split, fit, bits, window, image_field, label_field,
            split_field: as in vit_self_distill
        steps     optimizer steps of 256 images
        steps, epochs, batch_size, lr, warmup, seeds, augment ...: as in vit_self_distill
Expect  stages/pretrain/export, to be the `init` of small_adapt. 6 blocks of width 192,
        3 heads, 32 x 32 images, 4 x 4 patches; about 20 minutes on two CPU cores for
        1 500 steps. benchmarks/results/first_light.md shows ours.
Source  ours; He et al. 2022 at a small size (crops and flips, AdamW, cosine).
"""

from flax_adapt import defaults

MODEL = defaults.small_mae(
    width=192,
    depth=6,
    heads=3,
    decoder=dict(width=128, depth=1, heads=4),
    image_size=32,
    patch_size=4,
    channels=3,
)


ARGUMENTS = dict(
    dataset="tfds:cifar10",
    data_dir="",
    train_split="train",
    test_split="test",
    steps=1_500,
    **defaults.IMAGE_FILES,
)


def make(args):
    source = defaults.dataset(args.dataset)
    pixels = dict(image_size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    pixels |= dict(data_dir=args.data_dir)
    pixels |= defaults.read_images_as(args, source, args.train_split)
    augment = {**defaults.NO_AUGMENT, "flip": True, "min_crop_area": 0.2}
    optim = defaults.pretrain_optim(
        lr=1e-3, schedule="cosine", warmup_steps=args.steps // 15, weight_decay=0.05
    )
    stage = defaults.pretrain_stage(
        "pretrain",
        defaults.image_data(source, args.train_split, augment=augment, **pixels),
        num_steps=args.steps,
        batch_size=256,
        optim=optim,
        init_from="scratch",
    )
    labelled = defaults.image_data(source, args.train_split, **pixels)
    test_data = defaults.image_data(source, args.test_split, **pixels)
    return defaults.experiment(
        init="",
        model=MODEL,
        checkpoint=dict(every_steps=250, keep_last=2, keep_best=0),
        evaluate=defaults.evaluate(labelled, test_data),
        stages=(stage,),
    )


def get_config(arguments: str = ""):
    return defaults.make_config(arguments, make, **ARGUMENTS)
