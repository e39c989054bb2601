"""Fine-tune a pretrained text encoder on your labels: baseline of bert_self_distill.

Run     flax-adapt run --workdir=runs/x \
            --config=text_finetune:dataset=jsonl:PATH,init=PATH
        dataset, init, seq_len, finetune_steps, seeds, source ...: as in bert_self_distill
        steps, epochs, batch_size, lr, warmup, seeds, augment ...: as in vit_self_distill
Expect  macro-F1 (and accuracy, micro-F1, Matthews correlation), mean and spread over the
        seeds.
Source  Gururangan et al. 2020: AdamW 2e-5 to 0, batch 16, dropout 0.1, about 10 epochs
        of a small set in 1 000 steps.
"""

from flax_adapt import defaults

# Here they are of fine-tuning, since there is no other training.
OF_TRAINING = ("steps", "batch_size", "lr")


def make(args):
    texts = defaults.TextData(args)
    return texts.experiment([texts.finetune_stage("finetune", "pretrained")])


def get_config(arguments: str = ""):
    own = {k: v for k, v in defaults.TEXT_ARGUMENTS.items() if k not in OF_TRAINING}
    return defaults.make_config(arguments, make, **own)
