"""Adapt weights to own data, and hand over what held-out labels say is best.

Run     flax-adapt adapt --workdir=runs/x --init=MODEL --unlabelled=folder:A --labelled=folder:B
        flax-adapt run --workdir=runs/x \
            --config=adapt:init=MODEL,unlabelled=folder:A,labelled=folder:B
        init      initial weights of a ViT, DINOv2, DINOv3, CLIP, BERT, RoBERTa, ELECTRA,
                  ModernBERT or others (docs/weights.md); init_format, heads,
                  decoder_heads, gelu, layer_norm_eps: as in vit_self_distill
        unlabelled  data to train on without labels: SOURCE or SOURCE@SPLIT, as in
                  folder:scans/Training, csv:scans.csv@train ("": none)
        labelled  examples with labels, SOURCE or SOURCE@SPLIT ("": none, and the result is a
                  backbone)
        test      the test set ("": a fifth of the labelled examples)
        source    data that the weights were pre-trained on, SOURCE or SOURCE@SPLIT: it is
                  measured what was forgotten of it, and watch=source/knn reads it; replay
                  trains on it, too ("": none)
        method    none | further (masked pre-training goes on) | self_distill (further, then
                  rounds of self-distillation) | contrast (MoCo-v3) | replay (further, with
                  as many examples of source); auto: self_distill, with a source replay,
                  without unlabelled data none
        sizes     auto: from the size of the data, see docs/adapt.md | paper: as published;
                  arguments of one size, such as steps, come first
        rounds    rounds of self-distillation
        hidden    width of the projection head's hidden layers, of method=contrast
        finetune_steps, finetune_batch_size, finetune_lr  of every fine-tuning; rates of 0.3,
                  1 and 5 times finetune_lr are tried (of LP-FT 0.1, 0.3 and 1)
        new_part_steps  steps that train a decoder or masked-language head that init lacks,
                  with the encoder frozen
        precision auto | float32 | highest | bfloat16
        seeds     runs of every candidate
        min_crop_area  of the two views of method=contrast; 0: that of MoCo-v3, 0.08
        seq_len, text_field, label_field  of texts: as in bert_self_distill
        data_dir, fit, bits, window, image_field, split_field,
            steps, epochs, batch_size, lr, warmup, augment ...: as in vit_self_distill
Expect  a row for each candidate: a linear probe, LP-FT and full fine-tuning, of the initial
        and of the adapted backbone. `flax-adapt adapt` then chooses among them.
Source  Lee et al. 2023, Li et al. 2021, Chen et al. 2021, Kumar et al. 2022 (LP-FT); the
        sizes of auto and the choice are ours.
"""

from flax_adapt import defaults


def make(args):
    return defaults.Adapting(args).experiment()


def get_config(arguments: str = ""):
    return defaults.make_config(arguments, make, **defaults.ADAPT_ARGUMENTS)
