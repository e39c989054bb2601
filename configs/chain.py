"""All four methods in one recipe, each step an argument: what did each of them bring?

Run     flax-adapt run --workdir=runs/x \
            --config=chain:dataset=folder:PATH,init=PATH,domains=folder:A+folder:B,source=tfds:S
        dataset   the target (README): all of it without labels, `per_class` of a class with
        init      weights of a ViT with its MAE decoder, or of a BERT or RoBERTa with its
                  masked-language head; init_format, heads, decoder_heads, gelu,
                  layer_norm_eps: as in vit_self_distill
        domains   1. masked pre-training on these, one after another (S4); "": left out
        source    2. masked modelling of the target while rho examples of this for one of
                  the target are replayed (S2); source_split of it; "": left out
        width     3. of the last block: wider, the first features stay as they were;
                  narrower, principal components of the target's features (S3); then
                  masked modelling; 0: left out
        rounds    4. of self-distillation, after a teacher was further pre-trained (S1);
                  0: left out
        regularizer  5. of GLAD (S4): masked | preserve | none, with weight and adaptor as
                  in glad_finetune; "": left out, the last step is fine-tuned as usual
        compare   also fine-tune the start, and what each step left
        pretrain_steps, pretrain_batch_size, pretrain_lr  of every stage without labels
        per_class, split, test_split, data_dir  of the target; min_crop_area: not used here
        steps, batch_size, lr, lrs, seeds, dropout, pooling, augment  of fine-tuning and of
                  GLAD, the same for all, as in baseline_finetune
        seq_len, text_field, label_field  of texts
Expect  one table: test accuracy (texts: macro-F1) of the start, after each step, and of GLAD,
        whose export is a backbone for the next task. Not run on real sets yet.
Source  Yoon et al. 2023, Li et al. 2021, Bordes et al. 2023, Lee et al. 2023; that they
        follow each other in this order is ours, and was not searched.
"""

from flax_adapt import defaults
from flax_adapt.base import config as configs


def get_config(arguments: str = ""):
    args = configs.parse_arguments(arguments, **defaults.CHAIN_ARGUMENTS)
    return configs.build(defaults.Chain(args).experiment())
