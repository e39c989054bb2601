"""Continual learning (S4): learn domains in sequence, measure the transfer to all after each.

Run     flax-adapt run --workdir=runs/x \
            --config=continual_pretrain:domains=tfds:A+tfds:B+tfds:C,init=PATH
        flax-adapt eval --workdir=runs/x --config=...the same...
        domains   data sources (README), learned in this order
        also      further data sources on which transfer is measured; they are not learned
        init      initial weights of a ViT, DINOv2, DINOv3, CLIP, BERT, RoBERTa, ELECTRA,
                  ModernBERT or others (docs/weights.md); init_format, heads,
                  decoder_heads, gelu, layer_norm_eps: as in vit_self_distill
        data_dir  where TFDS finds its data sets
        objective how a domain is learned. Without labels: mae | mlm; with labels:
                  classify (a new head for each domain) | grow (one head, to which each
                  domain adds its classes) | glad (adaptors and head are dropped after each)
        method    against forgetting the earlier domains: none | er (examples of earlier
                  domains are replayed; for grow with their labels) | der (DER++: replayed
                  with labels and logits) | lwf (predictions are held to those of the model
                  after the previous domain) | ewc (a penalty for each earlier domain, by
                  its Fisher information; for mae and mlm that of the masked loss) |
                  online_ewc (one penalty for all). mae, mlm: er and both EWC; classify:
                  both EWC; grow: all; glad: none
        rho       replayed examples for one new example (0: no replay, for er and der 1); a
                  rho with method=none is method=er
        buffer_size  number of stored examples of all earlier domains together, for replay
                  (0: follows from rho)
        penalty   weight of the method's penalty (0: ewc 10, lwf 0.5, der 0.1, er 1)
        joint     True: also train one model on all domains at once, every example equally
                  often, with one head for all classes: the upper bound of a sequence
        steps, batch_size, lr  of learning a domain
        augment, dropout  of all training with labels, as in baseline_finetune (augment:
                  none | flip | crop)
        finetune  True: fine-tune every model on every domain
        finetune_steps, finetune_batch_size, finetune_lr  of that fine-tuning
        seeds     number of fine-tuning runs of every model and domain
        per_class number of labelled examples of every class for fine-tuning and for the
                  probes (0: all); labels: as in vit_self_distill
        adaptor, regularizer, weight  of objective=glad, as in glad_finetune
        split     split on which the domains are learned
        label_split, test_split  splits to fine-tune and probe on, and to test on
        pooling   features that heads and probes read: cls | mean
        source, source_split  as in vit_self_distill; of the domains the transfer matrices
                  say what was forgotten
        min_crop_area  of the two views whose alignment `flax-adapt eval` measures, where
                  there is a source; 0: that of MoCo-v3, 0.08
        seq_len, text_field, label_field  of texts: as in bert_self_distill
        steps, epochs, batch_size, lr, warmup, seeds, augment ...: as in vit_self_distill
Expect  stages/task_T_NAME/export after every task; one table of all fine-tuned models and
        domains, and from `flax-adapt eval` the transfer matrices (fine-tuned, linear probe,
        kNN) with the averages over learnt and over all domains, forgetting, backward and
        forward transfer, CKA and the distance of the weights to the initial ones.
        benchmarks/results/continual.md shows ours.
Source  Yoon et al. 2023 (arXiv 2306.12026) for the question; settings are ours, and were
        not searched. Stopped anywhere in the matrix, the same command continues.
"""

from flax_adapt import defaults


def make(args):
    return defaults.Continual(args).experiment()


def get_config(arguments: str = ""):
    return defaults.make_config(arguments, make, **defaults.CONTINUAL_ARGUMENTS)
