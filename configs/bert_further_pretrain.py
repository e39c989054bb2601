"""Further masked pre-training (MLM) of a text encoder on your texts; fine-tune if asked.

Run     flax-adapt run --workdir=runs/x \
            --config=bert_further_pretrain:dataset=text:PATH,init=PATH
        dataset, init, seq_len, steps, mlm_warmup, source ...: as in bert_self_distill
        heldout_split  held-out texts on which the perplexity of the result is measured
                  ("": none)
        new_tokens  file of words of the domain, one a line, that a WordPiece tokenizer
                  (BERT's, DistilBERT's, ELECTRA's) gets as tokens; their embeddings are the
                  mean of their pieces'. A folder beside the file has the grown model
        new_tokens_warmup  steps that train the table of token embeddings alone, before
                  everything is trained
        finetune  True: also fine-tune the result on the labels of the dataset
        steps, epochs, batch_size, lr, warmup, seeds, augment ...: as in vit_self_distill
Expect  stages/further/export, a folder of the family's class with a masked-language head
        (BertForMaskedLM, ModernBertForMaskedLM ...) with its tokenizer;
        results.json and metrics.jsonl have the perplexity of the masked tokens, in training
        and on held-out texts, and the number of these tokens.
Source  Gururangan et al. 2020, Don't Stop Pretraining: 12 500 steps, AdamW 1e-4 to 0;
        batch 64 and packed rows are ours.
"""

from flax_adapt import defaults
from flax_adapt.defaults.texts import new_tokens


def make(args):
    texts = defaults.TextData(new_tokens.grow_init(args))
    further = texts.pretrain_stage("further")
    warmup = new_tokens.warmup_stages(texts, args)
    if warmup:
        further["init_from"] = f"stage:{new_tokens.STAGE}"
    stages = [*texts.warmup_stages(), *warmup, further]
    if args.finetune:
        stages += [texts.finetune_stage("finetune", "stage:further")]
    return texts.experiment(stages)


def get_config(arguments: str = ""):
    own = dict(defaults.TEXT_ARGUMENTS, finetune=False, **new_tokens.ARGUMENTS)
    del own["seeds"]  # without fine-tuning they are of pre-training
    return defaults.make_config(arguments, make, **own)
