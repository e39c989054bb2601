"""All four methods in one recipe, each step an argument: what did each of them bring?

Run     flax-adapt run --workdir=runs/x \
            --config=chain:dataset=folder:PATH,init=PATH,domains=folder:A+folder:B,source=tfds:S
        dataset   target data set (README): all of it is used without labels, and
                  `per_class` labelled examples of every class for fine-tuning
        init      initial weights of a ViT with its MAE decoder, or of a text encoder
                  with its masked-language head; init_format, heads, decoder_heads, gelu,
                  layer_norm_eps: as in vit_self_distill
        domains   step 1, masked pre-training on these data sets one after another (S4);
                  "": no such step
        source    data that `init` was trained on. Step 2, masked modelling of the target
                  with replay of it (S2); `flax-adapt eval` measures on it what was
                  forgotten; "": neither
        rho       number of replayed examples of the source for one of the target
        source_split  split of source
        width     step 3, number of features of the last block, followed by masked
                  modelling (S3). Wider: the first features stay as they were; narrower:
                  principal components of the target's features. 0: no such step
        rounds    step 4, rounds of self-distillation, after a teacher was further
                  pre-trained (S1); 0: no such step
        regularizer  step 5, fine-tuning by GLAD (S4): masked | preserve | none, with weight
                  and adaptor as in glad_finetune; "": usual fine-tuning instead
        compare   True: also fine-tune the initial weights and the result of every step
        pretrain_steps, pretrain_batch_size, pretrain_lr  of every stage without labels
        per_class, labels, split, test_split, data_dir  of the target; labels: as in
                  vit_self_distill
        min_crop_area  not used here
        steps, batch_size, lr, lrs, seeds, dropout, pooling, augment  of fine-tuning and of
                  GLAD, the same for all, as in baseline_finetune
        seq_len, text_field, label_field  of texts: as in bert_self_distill
        steps, epochs, batch_size, lr, warmup, seeds, augment ...: as in vit_self_distill
Expect  one table: test accuracy (texts: macro-F1) of the initial weights, after each step,
        and of GLAD, whose export is a backbone for the next task (benchmarks/results/chain.md).
Source  Yoon et al. 2023, Li et al. 2021, Bordes et al. 2023, Lee et al. 2023; that they
        follow each other in this order is ours, and was not searched.
"""

from flax_adapt import defaults


def make(args):
    return defaults.Chain(args).experiment()


def get_config(arguments: str = ""):
    return defaults.make_config(
        arguments, make, main="fine-tuning", **defaults.CHAIN_ARGUMENTS
    )
