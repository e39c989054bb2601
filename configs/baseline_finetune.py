"""Fine-tune by the baselines that hold on to what the weights know, all from the same start.

Run     flax-adapt run --workdir=runs/x \
            --config=baseline_finetune:dataset=folder:PATH,init=PATH,method=full+l2_sp+lora
        dataset   images or texts with labels, as in vit_self_distill, bert_self_distill
        init      weights of a ViT, BERT or RoBERTa; init_format, heads, gelu, model,
                  image_size, channels, ...: as in vit_self_distill
        method    one or several, each a row of the table:
                  full          all weights
                  linear_probe  a new head on frozen, standardised features; see probe
                                (probe=lars trains a new pooler of texts, too)
                  lp_ft         that first, then all
                  lora          low-rank adaptors of query and value, and the head
                  adaptors      those of GLAD's attention, and the head
                  l2_sp         a penalty on the distance to the start
                  recadam       Adam that recalls the start at first
                  mars          weights stay in a ball around the start
                  r3f           predictions do not change under noise
                  ema           full, an average of the weights is the result
                  ewc           full, weights that mattered to the task before are held
                  lwf           full, predictions stay as those of the task before
                  er, der       full, examples of the task before are replayed: their
                                labels; their labels and logits (DER++)
        previous  a data set that is learnt first, from which all methods then start; the
                  last four need one. Its classes are those of dataset, and the head
                  stays; new_head=True: other classes (not for er, der; that of lwf has
                  the classes of both)
        buffer_size  examples of the task before that er and der keep
        seeds     runs of every method, with spread
        steps, batch_size, lr  of fine-tuning (0: those of vit_finetune or text_finetune;
                  the warm-up takes the same share of the steps)
        augment   of images: none | flip | crop (crops and flips); "": flip. Texts: none
        dropout   of fine-tuning; pooling: cls | mean, of texts pooler, too ("": images
                  cls, texts pooler). These settings are those of every method, and of
                  glad_finetune with the same arguments
        lrs       rates of fine-tuning to choose from, as in 1e-4+3e-4: each is tried on
                  four fifths of the labels, and the last fifth, which no earlier stage of
                  the tried run has seen, chooses ('': lr; of lp_ft 0.1, 0.3 and 1 times
                  that)
        probe     how the head of linear_probe and of lp_ft is found: exact (features
                  computed once, logistic regression solved, its penalty chosen on
                  held-out labels) | lars (as He et al. 2022 train it)
        probe_epochs, probe_lrs  of probe=lars: rates to choose from in the same way, but
                  by the loss, for a batch of 256 (times batch / 256)
        per_class, test_split, data_dir  as in vit_self_distill
        seq_len, text_field, pair_field, label_field  of texts
Expect  one table: test accuracy (texts: macro-F1) by method, mean and spread over the
        seeds. benchmarks/results/glad.md has five of them at a small size.
Source  defaults/baselines.py has the values, and whose they are: Li et al. 2018, Chen et
        al. 2020, Gouk et al. 2021, Aghajanyan et al. 2020, Hu et al. 2021, Kumar et al.
        2022, Kirkpatrick et al. 2017, Li and Hoiem 2017, Buzzega et al. 2020. None of
        them was searched. probe=lars is that of He et al. 2022: 90 epochs at 0.1, a head that
        starts at a deviation of 0.01; the rates above that are ours, since with few labels
        90 epochs are few steps. probe=exact is ours.
"""

from flax_adapt import defaults
from flax_adapt.base import config as configs


def get_config(arguments: str = ""):
    args = configs.parse_arguments(arguments, **defaults.BASELINE_ARGUMENTS)
    return configs.build(defaults.Baselines(args).experiment())
