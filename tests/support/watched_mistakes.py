"""The mistakes of a stage that watches a metric, as `support.mistakes` has them."""

from support import tiny

from flax_adapt import defaults

HEAD = tiny.finetune(init_from="scratch")
WATCHED = tiny.pretrain(watch=defaults.watch("target/knn"))
TRIED = {**HEAD, "sweep": defaults.sweep((0.1, 0.2))}
NORMED = {**HEAD, "model": defaults.stage_model(head_norm=True, fresh=("head",))}
SOLVED = {**NORMED, "num_steps": 1, "optim": defaults.exact_probe_optim()}
MISTAKES = {
    "watch.metric='knn' is unknown": (WATCHED, {"watch.metric": "knn"}, {}),
    "watch.metric='rankme' is unknown": (
        *(WATCHED, {"watch.metric": "target/knn+rankme"}, {}),
    ),
    "watch.metric='target/knn+target/knn' has target/knn twice": (
        *(WATCHED, {"watch.metric": "target/knn+target/knn"}, {}),
    ),
    "source/knn is measured on evaluate.source": (
        *(WATCHED, {"watch.metric": "target/knn+source/knn"}, {}),
    ),
    "watch.on_hurt='stop' is unknown": (WATCHED, {"watch.on_hurt": "stop"}, {}),
    "watch.patience=-1 and": (WATCHED, {"watch.patience": -1}, {}),
    "watch.examples=3 must be": (WATCHED, {"watch.examples": 3}, {}),
    "watch and sweep both": (TRIED, {"watch": defaults.watch("target/knn")}, {}),
    "watch is of a stage that takes": (
        *(SOLVED, {"watch": defaults.watch("target/knn")}, {}),
    ),
    "watch.metric='held_out/accuracy' is of classes": (
        *(WATCHED, {"watch.metric": "held_out/accuracy"}, {}),
    ),
}
