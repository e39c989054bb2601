"""Fine-tune a MAE or another ViT by MAE's own recipe: heavy augmentation, layer decay.

Run     flax-adapt run --workdir=runs/x --config=mae_finetune:dataset=folder:PATH,init=PATH
        dataset, data_dir, init, init_format, heads, decoder_heads, gelu,
            layer_norm_eps, weights, model, image_size, patch_size, channels, channels_by,
            per_class, labels, test_split, source, source_split: as in vit_self_distill
        augment   mae (crops, flips, RandAugment of 2 operations at magnitude 9, random
                  erasing of a quarter of the images) | none | flip | crop
        epochs    of training (0: 100, of ViT-L and H 50)
        batch_size  images of a batch, at most all there are
        blr       learning rate of a batch of 256; that of others in proportion
        warmup_epochs  of the learning rate
        seeds     runs, each with its own head, order and augmentation
        steps, epochs, batch_size, lr, warmup, seeds, augment ...: as in vit_self_distill
Expect  test accuracy. Not run at full size yet: 100 epochs of ViT-B/16 want an accelerator.
Source  He et al. 2022 (MAE), table 9 and official code: AdamW, layer decay 0.65 (L, H 0.75),
        drop path 0.1 (L 0.2, H 0.3), weight decay 0.05, label smoothing 0.1, mixup 0.8,
        cutmix 1.0, RandAugment (9, 0.5), erasing 0.25, mean of patches. Ours: cosine to
        0 and not to 1e-6; mixup and cutmix drawn for each example, there for each batch.
"""

from flax_adapt import defaults


def get_config(arguments: str = ""):
    return defaults.make_config(
        arguments, defaults.mae_finetune, **defaults.MAE_FINETUNE_ARGUMENTS
    )
