"""S2: adapt a ViT or BERT to a small unlabelled set, with source replay and data mixing.

Run     flax-adapt run --workdir=runs/x \
            --config=unsup_finetune:dataset=folder:PATH,source=tfds:NAME,init=PATH
        dataset   the target: any data source (README); its labels are not trained on
        source    what the weights were pre-trained on, to replay some of it and to
                  measure the damage on
        init      weights of a ViT, BERT or RoBERTa; init_format, heads, decoder_heads,
                  gelu, layer_norm_eps: as in vit_self_distill
        data_dir  where TFDS finds its data sets
        method    naive (target alone) | replay | mixing | both | frozen (a control: the
                  encoder stays, its new heads alone train); several: naive+replay+both,
                  each from init
        objective contrast (MoCo of images, dropout views of texts) | mae | mlm
        rho       source examples for one of the target: 0.1 to 4
        sampling  of replay: stratified (the same share in every batch) | uniform
        operator  of mixing: mixup | cutmix; alpha of its Beta distribution
        pairing   target_source | target_target | any; "": with replay the first
        reading   imix (soft labels) | unmix (both losses) | instance (a new example);
                  "": imix for contrast, instance for mae, which knows no other
        form      moco_v3 (keys of the batch) | moco_v2 (keys of a queue; queue_size: a
                  multiple of batch_size, at most half of the examples)
        hidden    width of the heads' hidden layers (contrast)
        min_crop_area  of the views of images
        seeds, steps, batch_size, lr  of training
        split, source_split  what is trained on, such as "train[:300]"
        label_split, per_class, test_split  labels of the target and its test set, for
                  `flax-adapt eval`; per_class 0: all there are, none if there are none
        drift_split  of the source, that eval measures the damage on: better one that is
                  not replayed, and not too long ("": source_split)
        seq_len, text_field, label_field  of texts
Expect  stages/METHOD/export, an encoder (with a decoder or a masked-language head where
        the objective has one), and from `flax-adapt eval` with the same config a table:
        kNN, linear probe and drift of the start and of every seed.
        benchmarks/results/unsup_finetune.md shows ours.
Source  Li et al. 2021 for replay and mixing, whose losses and ratios are not published;
        MoCo-v3 for the contrast; the rest is ours and was not searched.
"""

from flax_adapt import defaults
from flax_adapt.base import config as configs


def get_config(arguments: str = ""):
    args = configs.parse_arguments(arguments, **defaults.UNSUPERVISED_ARGUMENTS)
    return configs.build(defaults.Unsupervised(args).experiment())
