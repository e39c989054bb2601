"""S4: learn a sequence of domains, and measure after each what transfers to all of them.

Run     flax-adapt run --workdir=runs/x \
            --config=continual_pretrain:domains=tfds:A+tfds:B+tfds:C,init=PATH
        flax-adapt eval --workdir=runs/x --config=...the same...
        domains   data sources (README), learned in this order; also: further ones that
                  are only transferred to
        init      weights of a ViT, BERT or RoBERTa; init_format, heads, decoder_heads,
                  gelu, layer_norm_eps: as in vit_self_distill
        data_dir  where TFDS finds its data sets
        objective how a domain is learned. Without labels: mae | mlm; with:
                  classify (a new head for each) | grow (one head that grows by classes)
                  | glad (adaptors and head are dropped after each)
        method    against forgetting the earlier domains: none | er (their examples are
                  replayed; of grow with labels) | der (DER++: with labels and logits) |
                  lwf (predictions stay as after the domain before) | ewc (a penalty for
                  each, by its Fisher information; of mae and mlm that of the masked
                  loss) | online_ewc (one penalty for all). mae, mlm: er and both EWC;
                  classify: both EWC; grow: all; glad: none
        rho       replayed examples for one of the new (0: none; of er and der 1); with
                  method=none as er
        buffer_size  examples of all earlier domains that replay keeps (0: as rho says)
        penalty   weight of the method's penalty (0: ewc 10, lwf 0.5, der 0.1, er 1)
        joint     also train on all domains at once, every example as often, one head for
                  all classes: the upper bound of a sequence
        steps, batch_size, lr  of learning a domain; augment (none | flip | crop) and
                  dropout: of all that has labels, as in baseline_finetune
        finetune  fine-tune every model on every domain: finetune_steps,
                  finetune_batch_size, finetune_lr, seeds
        per_class labels of every class for that, and for the probes (0: all)
        adaptor, regularizer, weight  of glad, as in glad_finetune
        split     what is learned; label_split, test_split: of the transfer
        pooling   cls | mean
        min_crop_area  of the two views whose alignment `flax-adapt eval` measures, where
                  evaluate.source is set
        seq_len, text_field, label_field  of texts
Expect  stages/task_T_NAME/export after every task; one table of all fine-tuned cells, and
        from `flax-adapt eval` the transfer matrices (fine-tuned, linear probe, kNN) with
        the averages over learnt and over all domains, forgetting, backward and forward
        transfer, CKA and the distance of the weights to the start.
        benchmarks/results/continual.md shows ours.
Source  Yoon et al. 2023 (arXiv 2306.12026) for the question; settings are ours, and were
        not searched. Stopped anywhere in the matrix, the same command continues.
"""

from flax_adapt import defaults
from flax_adapt.base import config as configs


def get_config(arguments: str = ""):
    args = configs.parse_arguments(arguments, **defaults.CONTINUAL_ARGUMENTS)
    return configs.build(defaults.Continual(args).experiment())
