"""Expand or narrow the features (S3) of a ViT, BERT or ResNet by another last block.

Run     flax-adapt run --workdir=runs/x \
            --config=resize_last_block:dataset=folder:PATH,init=PATH,width=192+768
        flax-adapt eval --workdir=runs/x --config=...the same...
        dataset   training data: any data source (README)
        init      initial weights of a ViT, DINOv2, DINOv3, CLIP, BERT, RoBERTa, ELECTRA,
                  ModernBERT, ResNet (width: 2048 and others) ... (docs/weights.md);
                  init_format, heads, decoder_heads, gelu, layer_norm_eps: as in
                  vit_self_distill
        scratch   a model to train from scratch, without init: resnet50 (what the paper
                  resizes), Ti, S, B, L, H
        image_size  side of the images of scratch
        data_dir  where TFDS finds its data sets
        width     number of features; several, with + between: a stage for each, from init
        start     initial values of the new weights: preserve (the first features stay as
                  they were; width at least the model's) | pca (principal components of
                  the features of the data; width at most the model's) | random | auto
                  (preserve or pca, by the width)
        noise     of start=preserve: initial scale of new features, relative to the old ones
        tokens    of start=pca: tokens whose features are analysed: all | first (CLS) |
                  pooled (patches)
        relu      True: a ReLU before the pooling, which makes features sparse
        objective contrast (MoCo-v3; for texts the two views differ by dropout) | mae | mlm |
                  classify (with labels)
        projector True: contrast and classify train through a projection head, which is
                  dropped after training; False: without one
        hidden    width of the projection head's hidden layers
        variant   one or several, joined by +: resized | same (the model's own last block,
                  trained alike); controls: random (random features of the frozen encoder,
                  linear in its features without relu) | linear (a linear layer d -> D that
                  is kept) | extra (one more block, with as many parameters)
        probe_on  further data sets for `flax-adapt eval`, with + between
        split     split to train on
        label_split, per_class, test_split  of eval: split of the labelled examples, their
                  number for every class (0: all), split to test on
        labels    of eval: each_seed (kNN and probes have evaluate.draws draws of these
                  labels) | fixed (they have one)
        source, source_split  as in vit_self_distill
        pooling   features that heads and probes read: cls | mean
        seeds     number of runs of every variant and width
        steps, batch_size, min_crop_area  of training; min_crop_area: of the two views; 0:
                  that of MoCo-v3, 0.08, of a resnet 0.2
        lr        0: 1.5e-4 of AdamW; of resnet50 from scratch with labels, which SGD with
                  momentum trains, 0.1 x batch_size / 256; of contrast on a resnet, which
                  LARS trains as in MoCo-v3, 0.3 x batch_size / 256
        augment   of classify: none | flip | crop (crops and flips); "": crop for
                  resnet50 from scratch, else flip; texts: none
        seq_len, text_field, label_field  of texts: as in bert_self_distill
        steps, epochs, batch_size, lr, warmup, seeds, augment ...: as in vit_self_distill
Expect  stages/VARIANT_WIDTH/export, and from `flax-adapt eval` a table for each data set:
        kNN, linear probe, probe with a hidden layer, share of zeros, and the probe on
        binarised features (h != 0); all models share one pass over each set.
        benchmarks/results/resize_last_block.md shows ours.
Source  Bordes et al. 2023, who resize the last block of a ResNet-50; for transformers,
        and for resizing trained weights, the choices are ours, explained
        in `flax_adapt.surgery.last_block`; nothing was searched.
"""

from flax_adapt import defaults


def make(args):
    return defaults.Resizing(args).experiment()


def get_config(arguments: str = ""):
    return defaults.make_config(arguments, make, **defaults.RESIZING_ARGUMENTS)
