"""Unsupervised fine-tuning (S2) of a ViT or BERT on a small set, with replay and mixing.

Run     flax-adapt run --workdir=runs/x \
            --config=unsup_finetune:dataset=folder:PATH,source=tfds:NAME,init=PATH
        dataset   target data set: any data source (README); training ignores its labels
        source    data that the initial weights were pre-trained on; replay and both need it
                  for what they replay. `flax-adapt eval` measures on it how much the model
                  has changed and, where it has classes, what was forgotten; without it
                  (naive, mixing, frozen) there is neither
        init      initial weights of a ViT, DINOv2, DINOv3, CLIP, BERT, RoBERTa, ELECTRA,
                  ModernBERT or others (docs/weights.md); init_format, heads,
                  decoder_heads, gelu, layer_norm_eps: as in vit_self_distill
        data_dir  where TFDS finds its data sets
        method    naive (target alone) | replay | mixing | both | frozen (a control: the
                  encoder is frozen, only its new heads train); several: naive+replay+both,
                  each from init
        objective contrast (MoCo of images, dropout views of texts) | mae | mlm
        rho       number of replayed source examples for one of the target: 0.1 to 4
        sampling  of replay: stratified (the same share in every batch) | uniform
        operator  of mixing: mixup | cutmix
        alpha     both parameters of the Beta distribution of the mixing ratio
        pairing   which examples are mixed: target_source | target_target | any; "":
                  target_source with replay, else target_target
        reading   how a mixed example is used: imix (soft labels) | unmix (both losses) |
                  instance (as a new example); "": imix for contrast, instance for mae,
                  which supports no other
        form      of contrast: moco_v3 (keys of the batch) | moco_v2 (keys of a queue)
        queue_size  of moco_v2: a multiple of batch_size, at most half of the examples
        hidden    width of the heads' hidden layers (contrast)
        min_crop_area  of the views of images; 0: that of MoCo-v3, 0.08, of a resnet 0.2
        seeds     number of runs of every method
        steps, batch_size, lr  of training
        split, source_split  splits of target and source to train on, as "train[:300]"
        label_split, per_class, test_split  for `flax-adapt eval`: the split of the target's
                  labels, their number for every class, and the split to test on; per_class
                  0: all labels there are, none if there are none
        labels    of eval: each_seed (kNN and probes have evaluate.draws draws of these
                  labels) | fixed (they have one)
        drift_split  split of the source on which eval measures the drift: better one that
                  is not replayed, and not too long ("": source_split)
        seq_len, text_field, label_field  of texts: as in bert_self_distill
        steps, epochs, batch_size, lr, warmup, seeds, augment ...: as in vit_self_distill
Expect  stages/METHOD/export, an encoder (with a decoder or a masked-language head where
        the objective has one), and from `flax-adapt eval` with the same config a table:
        kNN, linear probe and drift of the initial weights and of every seed.
        benchmarks/results/unsup_finetune.md shows ours.
Source  Li et al. 2021 for replay and mixing, whose losses and ratios are not published;
        MoCo-v3 for the contrast; the rest is ours and was not searched.
"""

from flax_adapt import defaults


def make(args):
    return defaults.Unsupervised(args).experiment()


def get_config(arguments: str = ""):
    return defaults.make_config(arguments, make, **defaults.UNSUPERVISED_ARGUMENTS)
