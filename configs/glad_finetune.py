"""S4: GLAD fine-tuning, which solves a task and keeps a backbone for the next one.

Run     flax-adapt run --workdir=runs/x \
            --config=glad_finetune:dataset=folder:PATH,init=PATH,then=folder:NEXT
        dataset   labelled data (README)
        init      weights of a ViT, BERT or RoBERTa; init_format, heads, decoder_heads,
                  gelu, layer_norm_eps: as in vit_self_distill
        data_dir  where TFDS finds its data sets
        regularizer  of the path without adaptors: preserve (stay near the initial
                  model's features, or its attention: preserve=features | attention) |
                  masked (masked modelling goes on; needs a decoder) | none; several
                  with + between, each from init
        weight    of the regularizer: 0.1, 1, 10
        stop_backbone  the task trains adaptors and head alone
        adaptor   vector (keywise: one for the channels of keys, too) | mixing |
                  bottleneck (of width `bottleneck`)
        then      next tasks, with + between: each starts from the backbone of seed 0
        then_by   finetune | glad | mae | mlm, for then_steps at then_lr. mae and mlm go
                  on with the decoder that regularizer=masked trains beside; the others
                  leave none: a new one is trained first, with the encoder frozen, for
                  then_warmup steps
        per_class labels of every class (0: all); split, test_split
        augment, seeds, steps, batch_size, lr, lrs, dropout, pooling  of training, as in
                  baseline_finetune, whose methods the same arguments train alike
        min_crop_area  of the two views whose alignment `flax-adapt eval` measures, where
                  evaluate.source is set
        seq_len, text_field, label_field  of texts
Expect  a table of test accuracies. stages/NAME/export is the backbone (with its decoder
        where that was trained); stages/NAME/checkpoints is the classifier with its
        adaptors, in the format orbax. benchmarks/results/glad.md shows ours.
Source  Yoon et al. 2023 (arXiv 2306.12026), abstract and figure; there is no official
        code, and what is open is one argument each, said to be ours in
        `flax_adapt.models.adaptors` and `flax_adapt.objectives.glad`. Not searched.
"""

from flax_adapt import defaults
from flax_adapt.base import config as configs


def get_config(arguments: str = ""):
    args = configs.parse_arguments(arguments, **defaults.GLAD_ARGUMENTS)
    return configs.build(defaults.Glad(args).experiment())
