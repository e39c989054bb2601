"""S1 on text: further masked pre-training of a BERT on your texts, self-distil, fine-tune.

Run     flax-adapt run --workdir=runs/x \
            --config=bert_self_distill:dataset=jsonl:PATH,init=PATH,rounds=1
        dataset   jsonl:PATH, csv:PATH, tsv:PATH (a folder of train.*, test.*, or one
                  file), text:PATH, tfds:NAME
        init      a Hugging Face folder of BERT or RoBERTa with its tokenizer
        init_format  of `init` ("": what it looks like)
        rounds    of self-distillation, each from the original weights
        seq_len   tokens of a row: texts are cut to it for fine-tuning, and packed into
                  it for masked pre-training
        ablation  what takes the place of self-distillation: no_masked (the rounds without
                  the masked loss), predictions (matched in place of hidden states),
                  features (feature distillation: smooth L1 to the whitened tokens of
                  the teacher, no masked loss), weight_distance (a penalty on the distance
                  to the initial weights), twice (as many steps of further
                  pre-training); none: nothing
        compare   also fine-tune the start and the further pre-trained model
        mlm_warmup  steps that train a NEW masked-language head, the encoder frozen: for
                  an `init` without one (0: it has one)
        text_field, pair_field, label_field  names of the columns
        pooling   what the classifier stands on and self-distillation compares: pooler
                  (CLS through a new tanh layer), cls or mean (of all tokens)
        steps, batch_size, lr  of further pre-training and of every round
        finetune_steps, finetune_lr, seeds  of fine-tuning (batch 16)
        regress   labels are numbers: squared error and Spearman's correlation
        per_class labels of every class to fine-tune on (0: all)
        test_split  what to test on; "rest": all that per_class left over,
                  whose texts masked pre-training then sees too
        heldout_split  texts to measure the perplexity of masked pre-training on ("": none)
        augment   none: texts are not augmented
        data_dir  where TFDS finds its data sets
Expect  a table of macro-F1 over the seeds, and what each step brought (accuracy and
        more are in results). benchmarks/results/text_first_light.md shows ours.
Source  Lee et al. 2023 for the method, whose released code has no text part; steps and
        learning rates after Gururangan et al. 2020, the rest is ours.
"""

from flax_adapt import defaults
from flax_adapt.base import config as configs


def get_config(arguments: str = ""):
    args = configs.parse_arguments(
        arguments,
        **defaults.TEXT_ARGUMENTS,
        rounds=1,
        compare=True,
        ablation="none",
    )
    texts = defaults.TextData(args)
    stages = defaults.self_distill_stages(texts, args, start=True)
    return configs.build(texts.experiment(stages))
