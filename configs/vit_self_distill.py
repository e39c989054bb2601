"""S1 in full: further pre-train a MAE ViT on your images, self-distil, fine-tune.

Run     flax-adapt run --workdir=runs/dtd \
            --config=vit_self_distill:dataset=dtd,data_dir=DIR,init=PATH,rounds=1
        dataset   cub, dtd, dogs, flowers (TFDS), or any source: folder:PATH, tfds:NAME
        data_dir  where TFDS finds its data sets
        init      weights of a masked autoencoder with its decoder, a Hugging Face
                  folder or another format; of an encoder alone: see decoder_warmup
        init_format  of `init` ("": what it looks like)
        heads, decoder_heads, gelu, layer_norm_eps  of `init`, where a file of tensors
                  alone does not tell them (0, "": it does)
        model     Ti, S, B, L or H: refuse another size; without `init`, train it from
                  scratch (16 x 16 patches, 224 x 224 images)
        image_size, patch_size, channels  other than those of `init` (0: the same): its
                  positions and patch embedding are resized, and the report says so
        channels_by  sum or average: what other channels are made of
        decoder_warmup  steps that train a NEW decoder, the encoder frozen, for an `init`
                  without one or with patches of other pixels (0: it has one); all rounds
                  start from that. --config.model.decoder.width=... sizes it
        rounds    of self-distillation, each from the original weights (released code: 1)
        ablation  what takes the place of self-distillation: no_masked (the rounds without
                  the masked loss), predictions (matched in place of hidden states),
                  features (feature distillation: smooth L1 to the whitened tokens of
                  the teacher, no masked loss), weight_distance (a penalty on the distance
                  to the initial weights), twice (as many steps of further
                  pre-training); none: nothing
        compare   also fine-tune the start and the further pre-trained model
        per_class labels of every class to fine-tune on (0: all)
        test_split  what to test on; "rest": all that per_class left over
        augment   of fine-tuning: none | flip | crop (crops of 8 % of the area or more,
                  and flips); "": flip
Expect  a table of test accuracies over 5 seeds, and what each step brought. Not run at
        full size yet: 2 x 20 000 steps of ViT-B/16 want an accelerator.
Source  Lee et al. 2023, Self-Distillation for Further Pre-training of Transformers, and
        its released code: batch 64, 20 000 steps, AdamW 1.5e-4 to 0; fine-tuning batch
        32, 10 000 steps, 1e-4 with 500 warm-up steps.
"""

from flax_adapt import defaults
from flax_adapt.base import config as configs


def get_config(arguments: str = ""):
    args = configs.parse_arguments(
        arguments,
        **defaults.S1_PRETRAIN_ARGUMENTS,
        rounds=1,
        compare=True,
        ablation="none",
    )
    data = defaults.S1Data(args)
    stages = defaults.self_distill_stages(data, args, start=bool(args.init))
    return configs.build(data.experiment(stages))
