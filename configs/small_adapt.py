"""Self-distillation (S1), small: adapt the model of small_pretrain to images with few labels.

Run     flax-adapt run --workdir=runs/steel \
            --config=small_adapt:init=runs/small/stages/pretrain/export,dataset=folder:PATH
        dataset, data_dir, init, init_format, heads, decoder_heads, gelu,
            layer_norm_eps, image_size, patch_size, channels, channels_by,
            decoder_warmup, per_class, labels, test_split, augment, source, source_split:
            as in vit_self_distill
        rounds    number of rounds of self-distillation
        steps     of further pre-training and of every round (batch 64)
        finetune_steps  steps of fine-tuning (batch 32), 3 seeds
        steps, epochs, batch_size, lr, warmup, seeds, augment ...: as in vit_self_distill
Expect  one table: fine-tuning the initial weights, the further pre-trained and the
        self-distilled model. benchmarks/results/first_light.md shows ours.
Source  Lee et al. 2023 with fewer steps; the learning rates are ours: ten times the
        paper's, for a model a hundredth the size. Not searched.
"""

from flax_adapt import defaults
from flax_adapt.base.errors import UserError


def make(args):
    if not args.init:
        raise UserError(
            "small_adapt needs init=PATH, weights of a ViTMAEForPreTraining"
        )
    data = defaults.S1Data(args)

    def pretrain(**changes):
        optim = defaults.pretrain_optim(lr=1.5e-3)
        return dict(num_steps=args.steps, optim=optim, **changes)

    def finetune(name, init_from):
        optim = defaults.finetune_optim(lr=1e-3, warmup_steps=5)
        sizes = dict(num_steps=args.finetune_steps, seeds=(0, 1, 2), optim=optim)
        return data.finetune_stage(name, init_from, **sizes)

    last = f"stage:distill_{args.rounds}"
    stages = [
        finetune("finetune_start", data.original),
        *data.warmup_stages(),
        data.pretrain_stage("further", **pretrain()),
        finetune("finetune_further", "stage:further"),
        *data.distill_stages("further", args.rounds, **pretrain()),
        finetune("finetune_distilled", last),
    ]
    return data.experiment(stages)


def get_config(arguments: str = ""):
    sizes = dict(rounds=1, steps=300, finetune_steps=100)
    own = {**defaults.S1_PRETRAIN_ARGUMENTS, "per_class": 10, **sizes}
    return defaults.make_config(arguments, make, **own)
