"""Self-distillation (S1): further pre-train a MAE ViT on your images, self-distil, fine-tune.

Run     flax-adapt run --workdir=runs/dtd \
            --config=vit_self_distill:dataset=dtd,data_dir=DIR,init=PATH,rounds=1
        dataset   cub, dtd, dogs, flowers (TFDS), or any source: folder:PATH, tfds:NAME
        data_dir  where TFDS finds its data sets
        init      initial weights: a masked autoencoder with its decoder, as a Hugging Face
                  folder or in another format; for an encoder alone see decoder_warmup
        init_format  format of `init` ("": detected)
        heads, decoder_heads, gelu, layer_norm_eps  fields of the model that a file of tensors
                  alone does not have: numbers of attention heads, erf | tanh, a number
                  (0, "": taken from `init`, or assumed as the report says)
        weights   name of the set of weights to load where a torch file has several ("": the
                  usual one)
        model     Ti, S, B, L or H: refuse an `init` of another size; without `init`, the
                  size to train from scratch (16 x 16 patches, 224 x 224 images)
        image_size, patch_size, channels  other than those of `init` (0: the same): its
                  positions and patch embedding are resized, and the report says so
        channels_by  sum or average: how the patch embedding of other channels is made from
                  that of the channels of `init`
        decoder_warmup  steps that train a NEW decoder with the encoder frozen, for an
                  `init` without a decoder or with patches of other pixels (0: `init` has
                  one); all rounds start from the result. --config.model.decoder.width=...
                  sizes it
        rounds    number of rounds of self-distillation, each from the initial weights
                  (released code: 1)
        ablation  replaces self-distillation by: no_masked (rounds without the masked
                  loss), predictions (rounds that match predictions, not hidden states),
                  features (feature distillation: rounds of smooth L1 to the whitened
                  tokens of the teacher, no masked loss), weight_distance (further
                  pre-training with a penalty on the distance to the initial weights),
                  twice (further pre-training for twice the steps); none: no replacement
        compare   True: also fine-tune the initial weights and the further pre-trained model
        per_class number of labelled images of every class for fine-tuning (0: all)
        labels    each_seed: every seed of fine-tuning draws its own labels, the same for
                  all arms | fixed: all seeds have the same
        train_split, test_split  splits to train and to test on, by the names of their
                  folders; test_split=rest: all images that per_class does not select
        source    data that `init` was trained on ("": none). Training does not read it:
                  `flax-adapt eval` measures on it what was forgotten (kNN and a linear
                  probe from one half to the other, where it has classes) and how much the
                  features have changed, and watch=source/knn reads it
        source_split  split of source, better not too long, as in "test[:2000]"
        fit       images are made square by: squash (the aspect ratio is lost, as in the
                  papers) | crop (the middle) | pad (black is added)
        bits      bits of a level in 16-bit files, such as 12 (0: all)
        window    LOW:HIGH, the levels that become black and white; LOW%:HIGH%: percentiles
                  of the training images ("": the range of the file's type)
        image_field, label_field, split_field  columns of a table of images ("": image_field
                  is the only one of the usual names; label_field="": no labels)
        steps, batch_size, lr  of training without labels, or of fine-tuning where there is
                  no other training (0: those of the recipe; the steps are those of the
                  first stage, others keep their proportion to it)
        epochs    the same stages, by passes over their data instead of steps (0: off)
        warmup    steps of warm-up of these stages (-1: the recipe's share of the steps). A
                  warm-up as long as the stage is cut to a tenth of it, and the log says so
        seeds     number of runs of fine-tuning, or of training without labels where there
                  is no fine-tuning (0: those of the recipe)
        augment   of fine-tuning: none | flip | crop (crops of 8 % of the area or more,
                  and flips); "": flip
        pool      what training without labels sees; without_test: no test example of the
                  same source and split ("": all; then gains are transductive, and said so)
        watch     stop the stages of `steps` early, and keep their best state, by target/knn |
                  target/probe (labels, no test examples) | pool/rankme | held_out/loss |
                  source/knn, measured 20 times a stage; several are joined by +, of which
                  the first decides and others are shown ("": the last state is kept)
        patience  measurements without a better one after which a stage stops (0: never)
        on_hurt   warn | rollback: a stage whose best state is worse than its initial weights,
                  or whose last one is where no state helped, has these as its result
                  ("": warn)
Expect  a table of test accuracies over 5 seeds with the gain of each step. Not run at
        full size yet: 2 x 20 000 steps of ViT-B/16 want an accelerator.
Source  Lee et al. 2023, Self-Distillation for Further Pre-training of Transformers, and
        its released code: batch 64, 20 000 steps, AdamW 1.5e-4 to 0; fine-tuning batch
        32, 10 000 steps, 1e-4 with 500 warm-up steps.
"""

from flax_adapt import defaults


def make(args):
    data = defaults.S1Data(args)
    stages = defaults.self_distill_stages(data, args, start=bool(args.init))
    return data.experiment(stages)


def get_config(arguments: str = ""):
    own = dict(defaults.S1_PRETRAIN_ARGUMENTS, rounds=1, compare=True, ablation="none")
    return defaults.make_config(arguments, make, **own)
