"""Fine-tune a pretrained BERT or RoBERTa on your labels: baseline of bert_self_distill.

Run     flax-adapt run --workdir=runs/x \
            --config=text_finetune:dataset=jsonl:PATH,init=PATH
        dataset, init, seq_len, finetune_steps, seeds ...: as in bert_self_distill
Expect  macro-F1 (and accuracy, micro-F1, Matthews correlation), mean and spread over the
        seeds.
Source  Gururangan et al. 2020: AdamW 2e-5 to 0, batch 16, dropout 0.1, about 10 epochs
        of a small set in 1 000 steps.
"""

from flax_adapt import defaults
from flax_adapt.base import config as configs


def get_config(arguments: str = ""):
    args = configs.parse_arguments(arguments, **defaults.TEXT_ARGUMENTS)
    texts = defaults.TextData(args)
    stages = [texts.finetune_stage("finetune", "pretrained")]
    return configs.build(texts.experiment(stages))
