"""Self-distillation (S1) on text: further pre-train a BERT, self-distil, fine-tune.

Run     flax-adapt run --workdir=runs/x \
            --config=bert_self_distill:dataset=jsonl:PATH,init=PATH,rounds=1
        dataset   jsonl:PATH, csv:PATH, tsv:PATH (a folder of train.*, test.*, or one
                  file), text:PATH, tfds:NAME
        init      initial weights: a Hugging Face folder of BERT, RoBERTa, XLM-RoBERTa,
                  CamemBERT, DistilBERT, ELECTRA or ModernBERT with its tokenizer
        init_format  format of `init` ("": detected)
        rounds    number of rounds of self-distillation, each from the initial weights
        seq_len   tokens of a row: texts are cut to it for fine-tuning, and packed into
                  rows of this length for masked pre-training
        ablation  replaces self-distillation by: no_masked (rounds without the masked
                  loss), predictions (rounds that match predictions, not hidden states),
                  features (feature distillation: rounds of smooth L1 to the whitened
                  tokens of the teacher, no masked loss), weight_distance (further
                  pre-training with a penalty on the distance to the initial weights),
                  twice (further pre-training for twice the steps); none: no replacement
        compare   True: also fine-tune the initial weights and the further pre-trained model
        mlm_warmup  steps that train a NEW masked-language head with the encoder frozen, for
                  an `init` without such a head (0: `init` has one)
        text_field, pair_field, label_field  names of the columns
        pooling   features that the classifier reads and self-distillation compares: pooler
                  (CLS through a new tanh layer; the CLS state is compared), cls or mean
                  (of all tokens)
        steps, batch_size, lr  of further pre-training and of every round
        finetune_steps, finetune_lr, seeds  of fine-tuning (batch 16); seeds: number of runs
        regress   True: labels are numbers; squared error and Spearman's correlation
        per_class number of labelled texts of every class for fine-tuning (0: all)
        labels    each_seed: every seed of fine-tuning draws its own labels, the same for
                  all arms | fixed: all seeds have the same
        test_split  split to test on; "rest": all texts that per_class does not select;
                  masked pre-training then sees these texts (not their labels), too
        source    data that `init` was trained on ("": none). Training does not read it:
                  `flax-adapt eval` measures on it what was forgotten (kNN and a linear
                  probe from one half to the other, where it has classes) and how much the
                  features have changed, and watch=source/knn reads it; its texts are in
                  text_field
        source_split  split of source, better not too long, as in "test[:2000]"
        heldout_split  held-out texts for the perplexity of masked pre-training ("": none)
        augment   none: texts are not augmented
        data_dir  where TFDS finds its data sets
        steps, epochs, batch_size, lr, warmup, seeds, augment ...: as in vit_self_distill
Expect  a table of macro-F1 over the seeds with the gain of each step (accuracy and more
        are in results.json). benchmarks/results/text_first_light.md shows ours.
Source  Lee et al. 2023 for the method, whose released code has no text part; steps and
        learning rates after Gururangan et al. 2020, the rest is ours.
"""

from flax_adapt import defaults


def make(args):
    texts = defaults.TextData(args)
    return texts.experiment(defaults.self_distill_stages(texts, args, start=True))


def get_config(arguments: str = ""):
    own = dict(defaults.TEXT_ARGUMENTS, rounds=1, compare=True, ablation="none")
    return defaults.make_config(arguments, make, **own)
