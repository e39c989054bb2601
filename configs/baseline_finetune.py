"""Fine-tune with one or several baseline methods, all from the same initial weights.

Run     flax-adapt run --workdir=runs/x \
            --config=baseline_finetune:dataset=folder:PATH,init=PATH,method=full+l2_sp+lora
        dataset   images or texts with labels, as in vit_self_distill, bert_self_distill
        init      initial weights of a ViT, DINOv2, DINOv3, CLIP, BERT, RoBERTa, ELECTRA,
                  ModernBERT or others (docs/weights.md); init_format, heads, gelu, model,
                  image_size, channels, ...: as in vit_self_distill
        method    one or several, joined by +; each is a row of the table:
                  full          trains all weights
                  linear_probe  trains a new head on frozen, standardised features; see
                                probe (with probe=lars a new pooler of texts is trained, too)
                  lp_ft         linear probing first, then fine-tuning of all weights
                  lora          trains low-rank adaptors of query and value, and the head
                  adaptors      trains the adaptors of GLAD's attention, and the head
                  l2_sp         penalises the distance to the initial weights
                  recadam       Adam with a pull to the initial weights in the first steps
                  mars          keeps the weights in a ball around the initial weights
                  r3f           penalises predictions that change under noise
                  ema           as full; the result is a moving average of the weights
                  ewc           as full; weights that mattered to the previous task are
                                held by a penalty
                  lwf           as full; predictions are held to those of the model of the
                                previous task
                  er, der       as full; examples of the previous task are replayed, er
                                with their labels, der with labels and logits (DER++)
        previous  data set of a previous task. It is learnt first, and all methods start
                  from the result; ewc, lwf, er and der need one. Its classes must be those
                  of dataset, and the head is kept
        new_head  True: dataset has other classes than previous (not for er and der; the
                  head of lwf then has the classes of both)
        buffer_size  number of examples of the previous task that er and der store
        seeds     number of runs of every method, for the spread
        steps, batch_size, lr  of fine-tuning (0: those of vit_finetune or text_finetune;
                  the warm-up keeps its share of the steps)
        augment   of images: none | flip | crop (crops and flips); "": flip. Texts: none
        dropout   rate of dropout in fine-tuning
        pooling   features that the head reads: cls | mean, of texts pooler, too ("": images
                  cls, texts pooler). All settings from steps to pooling are the same for
                  every method, and in glad_finetune with the same arguments
        lrs       learning rates of fine-tuning to choose from, as in 1e-4+3e-4. Each is
                  tried on four fifths of the labels and measured on the held-out fifth,
                  which no earlier stage of the tried run has seen. "": lr alone (of lp_ft
                  0.1, 0.3 and 1 times lr)
        probe     how the head of linear_probe and of lp_ft is trained: exact (features are
                  computed once, logistic regression is solved, its penalty is chosen on
                  held-out labels) | lars (as He et al. 2022 train it)
        probe_epochs  epochs of probe=lars
        probe_lrs learning rates of probe=lars to choose from, as lrs but by the held-out
                  loss; they are for a batch of 256 (times batch / 256)
        per_class, labels, test_split, data_dir, source, source_split  as in vit_self_distill
        seq_len, text_field, pair_field, label_field  of texts: as in bert_self_distill
        steps, epochs, batch_size, lr, warmup, seeds, augment ...: as in vit_self_distill
Expect  one table: test accuracy (texts: macro-F1) by method, mean and spread over the
        seeds. benchmarks/results/glad.md has five of them at a small size.
Source  defaults/baselines.py has the values and their sources: Li et al. 2018, Chen et
        al. 2020, Gouk et al. 2021, Aghajanyan et al. 2020, Hu et al. 2021, Kumar et al.
        2022, Kirkpatrick et al. 2017, Li and Hoiem 2017, Buzzega et al. 2020. None of
        them was searched. probe=lars is that of He et al. 2022: 90 epochs at 0.1, a head that
        starts at a deviation of 0.01; the rates above that are ours, since with few labels
        90 epochs are few steps. probe=exact is ours.
"""

from flax_adapt import defaults


def make(args):
    return defaults.Baselines(args).experiment()


def get_config(arguments: str = ""):
    return defaults.make_config(arguments, make, **defaults.BASELINE_ARGUMENTS)
