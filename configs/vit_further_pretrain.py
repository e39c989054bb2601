"""Further masked pre-training of a MAE ViT on your images; fine-tune if asked.

Run     flax-adapt run --workdir=runs/x \
            --config=vit_further_pretrain:dataset=folder:PATH,init=PATH
        dataset, data_dir, init, init_format, heads, decoder_heads, gelu,
            layer_norm_eps, model, image_size, patch_size, channels, channels_by,
            decoder_warmup, per_class, labels, test_split, augment, source, source_split:
            as in vit_self_distill
        finetune  True: also fine-tune the result on the labels of the dataset
        steps, epochs, batch_size, lr, warmup, seeds, augment ...: as in vit_self_distill
Expect  stages/further/export, a ViTMAEForPreTraining folder. Not run at full size yet:
        20 000 steps of ViT-B/16 at batch 64 want an accelerator.
Source  the teacher of Lee et al. 2023 (released code): batch 64, 20 000 steps, AdamW
        1.5e-4 to 0 without warm-up, no augmentation, mask ratio 0.75.
"""

from flax_adapt import defaults


def make(args):
    data = defaults.S1Data(args)
    stages = [*data.warmup_stages(), data.pretrain_stage("further")]
    if args.finetune:
        stages += [data.finetune_stage("finetune", "stage:further")]
    return data.experiment(stages)


def get_config(arguments: str = ""):
    own = dict(defaults.S1_PRETRAIN_ARGUMENTS, finetune=False)
    return defaults.make_config(arguments, make, **own)
