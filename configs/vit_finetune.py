"""Fine-tune a pretrained ViT or MAE encoder on your labels: baseline of vit_self_distill.

Run     flax-adapt run --workdir=runs/x \
            --config=vit_finetune:dataset=folder:PATH,init=PATH,per_class=10
        dataset, data_dir, init, init_format, heads, decoder_heads, gelu,
            layer_norm_eps, model, image_size, patch_size, channels, channels_by,
            per_class, labels, test_split, augment, source, source_split:
            as in vit_self_distill
        linear_probe  True: train the head alone, with the encoder frozen
        steps, epochs, batch_size, lr, warmup, seeds, augment ...: as in vit_self_distill
Expect  test accuracy, mean and spread over 5 seeds. Not run at full size yet: 5 x 10 000
        steps of ViT-B/16 at batch 32 want an accelerator.
Source  Lee et al. 2023 (released code): batch 32, 10 000 steps, AdamW 1e-4 to 0 with 500
        warm-up steps, clipping at 1.0, dropout 0.1, horizontal flips, head on CLS.
"""

from flax_adapt import defaults


def make(args):
    data, changes = defaults.S1Data(args), {}
    if args.linear_probe:
        changes["optim"] = defaults.finetune_optim(freeze=("encoder/.*",))
    return data.experiment([data.finetune_stage("finetune", data.original, **changes)])


def get_config(arguments: str = ""):
    own = dict(defaults.S1_ARGUMENTS, linear_probe=False)
    return defaults.make_config(arguments, make, **own)
