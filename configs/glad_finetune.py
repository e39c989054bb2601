"""GLAD fine-tuning (S4): solve a task, and keep a general backbone for the next one.

Run     flax-adapt run --workdir=runs/x \
            --config=glad_finetune:dataset=folder:PATH,init=PATH,then=folder:NEXT
        dataset   labelled data (README)
        init      initial weights of a ViT, DINOv2, DINOv3, CLIP, BERT, RoBERTa, ELECTRA,
                  ModernBERT or others (docs/weights.md); init_format, heads,
                  decoder_heads, gelu, layer_norm_eps: as in vit_self_distill
        data_dir  where TFDS finds its data sets
        regularizer  loss that keeps the backbone general, computed without the adaptors:
                  preserve (stay near the initial model, see preserve) | masked (masked
                  modelling goes on; needs a decoder or masked-language head) | none;
                  several with + between: a run for each, all from init
        preserve  what regularizer=preserve keeps near the initial model: features |
                  attention
        weight    of the regularizer, such as 0.1, 1 or 10
        stop_backbone  True: the task's gradient trains adaptors and head alone
        adaptor   form of the adaptors: vector | mixing | bottleneck
        keywise   True: adaptor=vector and bottleneck also scale the channels of keys
        bottleneck  width of adaptor=bottleneck
        then      next tasks, with + between: each starts from the backbone of seed 0
        then_by   how the next tasks are learnt: finetune | glad | mae | mlm
        then_steps, then_lr  steps and learning rate of the next tasks
        then_warmup  of then_by=mae and mlm: steps that train a new decoder or
                  masked-language head first, with the encoder frozen. regularizer=masked
                  needs none: it has trained one
        per_class number of labelled examples of every class (0: all)
        labels    each_seed | fixed: as in vit_self_distill; kNN and probe of `flax-adapt
                  eval` have the same draws
        split, test_split  splits to train and to test on
        augment, seeds, steps, batch_size, lr, lrs, dropout, pooling  of training, with the
                  same meaning and values as in baseline_finetune
        source, source_split  as in vit_self_distill
        min_crop_area  of the two views whose alignment `flax-adapt eval` measures, where
                  there is a source; 0: that of MoCo-v3, 0.08
        seq_len, text_field, label_field  of texts: as in bert_self_distill
        steps, epochs, batch_size, lr, warmup, seeds, augment ...: as in vit_self_distill
Expect  a table of test accuracies. stages/NAME/export is the backbone (with its decoder
        where that was trained); stages/NAME/checkpoints is the classifier with its
        adaptors, in the format orbax. benchmarks/results/glad.md shows ours.
Source  Yoon et al. 2023 (arXiv 2306.12026), abstract and figure; there is no official
        code. Each choice that they leave open is one argument and ours, as
        `flax_adapt.models.adaptors` and `flax_adapt.objectives.glad` say. Not searched.
"""

from flax_adapt import defaults


def make(args):
    return defaults.Glad(args).experiment()


def get_config(arguments: str = ""):
    return defaults.make_config(arguments, make, **defaults.GLAD_ARGUMENTS)
