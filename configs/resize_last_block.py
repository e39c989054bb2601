"""S3: expand or narrow the representation of a ViT, BERT or ResNet by its last block.

Run     flax-adapt run --workdir=runs/x \
            --config=resize_last_block:dataset=folder:PATH,init=PATH,width=192+768
        flax-adapt eval --workdir=runs/x --config=...the same...
        dataset   what is trained on: any data source (README)
        init      weights of a ViT, BERT, RoBERTa or ResNet (width: 2048 and others);
                  init_format, heads, decoder_heads, gelu, layer_norm_eps: as in
                  vit_self_distill
        scratch   instead of init, a model without weights: resnet50 (what the paper
                  resizes), Ti, S, B, L, H; image_size: of it
        data_dir  where TFDS finds its data sets
        width     of the features; several, with + between: a stage for each, from init
        start     of the new leaves: preserve (the first features stay as they were; at
                  least the model's width) | pca (principal components of the features of
                  the data; at most the model's) | random | auto (preserve or pca)
        noise     how large new features start beside the old ones (preserve)
        tokens    whose features pca looks at: all | first (CLS) | pooled (patches)
        relu      a ReLU before the pooling: features become sparse
        objective contrast (MoCo-v3; texts by dropout) | mae | mlm | classify (labels)
        projector True | False: heads between the features and contrast or classify,
                  dropped after training; hidden: their width
        variant   resized | same (the model as it is, trained alike); controls: random
                  (random features of the frozen ones; linear in them without relu) |
                  linear (a layer d -> D that is kept) | extra (a block more, with as
                  many parameters); several with +
        probe_on  further data sets for `flax-adapt eval`, with + between
        split     what is trained on; label_split, per_class (0: all), test_split: for eval
        pooling   cls | mean
        seeds, steps, batch_size, min_crop_area  of training
        lr        0: 1.5e-4 of AdamW; of resnet50 from scratch with labels, which SGD with
                  momentum trains, 0.1 x batch_size / 256; of contrast on a resnet, which
                  LARS trains as in MoCo-v3, 0.3 x batch_size / 256
        augment   of classify: none | flip | crop (crops and flips); "": crop for
                  resnet50 from scratch, else flip; texts: none
        seq_len, text_field, label_field  of texts
Expect  stages/VARIANT_WIDTH/export, and from `flax-adapt eval` a table for each data set:
        kNN, linear probe, probe with a hidden layer, share of zeros, and the probe where
        only h != 0 is known; all models share one pass over each set.
        benchmarks/results/resize_last_block.md shows ours.
Source  Bordes et al. 2023, who resize the last block of a ResNet-50; for transformers,
        and for a start from trained weights, the choices are ours, explained
        in `flax_adapt.surgery.last_block`; nothing was searched.
"""

from flax_adapt import defaults
from flax_adapt.base import config as configs


def get_config(arguments: str = ""):
    args = configs.parse_arguments(arguments, **defaults.RESIZING_ARGUMENTS)
    return configs.build(defaults.Resizing(args).experiment())
