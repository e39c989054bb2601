"""The commands and their flags as data, without importing the commands."""

from typing import Any, NamedTuple

REQUIRED = None


class Command(NamedTuple):
    """A command: `flax_adapt.commands.FUNCTION.FUNCTION` does it.

    A function in a folder is FOLDER.FUNCTION.

    summary: the first line of the function's docstring. flags: name -> (default, help).
    rest: the argument for words that are no flags, with its help; ("", ""): there is none.
    """

    function: str
    summary: str
    takes_config: bool
    flags: dict[str, tuple[Any, str]]
    rest: tuple[str, str] = ("", "")


_WORKDIR = {"workdir": (REQUIRED, "folder of the run; the same command continues it")}
_REPORT = {"report": (True, "write report.html at the end; --noreport: do not")}
_AGAIN = {"report": (True, "write report.html again, if there is one; --noreport: no")}
# How a command that runs on many machines finds the other processes; `__main__` joins them.
PROCESSES: dict[str, tuple[Any, str]] = {
    "coordinator": ("", "host:port of process 0 ('auto': TPU, SLURM, GKE, Open MPI)"),
    "num_processes": (1, "number of processes, with --coordinator=host:port"),
    "process_id": (0, "this process, 0 to num_processes - 1"),
    "peer_timeout": (60, "seconds without another process after which this one ends"),
    "stop_code": (0, "exit code after SIGTERM, for a scheduler that restarts"),
}
_FORMATS = "huggingface, timm, torchvision, facebook_mae, big_vision, orbax"
_INIT_FORMAT = {"init_format": ("", f"{_FORMATS}; '': detected")}
_OF_IMAGES = {
    "init_known": (
        "",
        "facts that init lacks: heads=6,gelu=tanh,weights=model_ema",
    ),
    "mean": ("", "images: mean of pixels, as 0.5,0.5,0.5; '': from init"),
    "std": ("", "images: standard deviation of pixels; '': from init"),
    "fit": ("", "images: squash, crop or pad to a square; '': as init, or squash"),
    "bits": (0, "images: bits of a level in 16-bit files; 0: as init, or all"),
    "window": ("", "images: LOW:HIGH, black and white levels; '': as init, or all"),
    "image_field": ("", "images: the column of a table that has them or their paths"),
    "split_field": ("split", "images: the column of a table that has the splits"),
}
# How a command that computes uses its machine; `__main__` sets it up.
MACHINE: dict[str, tuple[Any, str]] = {
    "compile_cache": (
        "",
        "folder of compiled programs; '': the user's, shared; none: not kept",
    ),
    "malloc": (
        "huge_pages",
        "huge_pages; keep: freed memory stays with the process; system: as it is",
    ),
}
_SPLIT: dict[str, tuple[Any, str]] = {
    "split": ("train", "split of the data"),
    "data_dir": ("", "where tfds: finds its data sets"),
}
_READING: dict[str, tuple[Any, str]] = {
    "precision": ("float32", "float32, highest (float32 in full), bfloat16 or auto"),
    "max_bad_fraction": (0.01, "a larger share of undecodable examples fails"),
    "seq_len": (128, "text: the most tokens of a text, which is cut off there"),
    "text_fields": ("text", "text: the column, or A,B for pairs"),
}
# `COMMAND --init=...` is a command of its own where the table has this name after COMMAND's.
BY_INIT = "--init"
COMMANDS = {
    "run": Command(
        "run",
        "Runs every stage of a config in a workdir, or continues it; prints the results.",
        True,
        {
            **_WORKDIR,
            **PROCESSES,
            "force": (False, "continue although the config of the workdir differs"),
            **_REPORT,
            **MACHINE,
        },
    ),
    "adapt": Command(
        "adapt",
        "Adapts weights to own data within a budget; hands over what held-out labels choose.",
        False,
        {
            "init": (REQUIRED, "weights of a ViT, BERT or others: a folder, ORG/NAME"),
            "unlabelled": ("", "SOURCE or SOURCE@SPLIT: folder:x/Training, csv:x.csv"),
            "labelled": ("", "examples with labels, SOURCE or SOURCE@SPLIT"),
            "test": ("", "the test set; '': a fifth of the labelled examples"),
            "source": ("", "what the weights were trained on: is it forgotten? SOURCE"),
            "method": ("auto", "auto, self_distill, further, contrast, replay, none"),
            "budget": ("auto", "30m, 2h, steps:2000, epochs:50, paper or auto"),
            "precision": ("auto", "float32, bfloat16; auto: what suits the device"),
            **_WORKDIR,
            "data_dir": ("", "where tfds: finds its data sets"),
            "init_format": ("", f"{_FORMATS}; '': detected"),
            "augment": ("", "images: none, flip, crop; '': flip"),
            "fit": ("squash", "images: squash, crop or pad to a square"),
            "bits": (0, "images: bits of a level in 16-bit files; 0: all"),
            "window": ("", "images: LOW:HIGH, or percentiles such as 1%:99%"),
            "image_field": ("", "images: the column of a table that has their paths"),
            "label_field": ("label", "the column of the labels"),
            "split_field": ("split", "images: the column of the splits"),
            "text_field": ("text", "texts: their column"),
            "seq_len": (128, "texts: the most tokens of a text"),
            "watch": ("", "keep the best by METRIC, and stop early; A+B: by A, show B"),
            "on_hurt": ("", "with --watch: warn or rollback, to the initial weights"),
            "seeds": (1, "runs of every candidate; more show the noise of training"),
            "near_copies": (True, "list near-copies of test examples in other data"),
            "dry_run": (False, "print what would be done, and stop"),
            **_REPORT,
            **MACHINE,
            "force": (False, "continue although the flags of the workdir differ"),
            "stop_code": (0, "exit code after SIGTERM, for a scheduler that restarts"),
        },
    ),
    "plan": Command(
        "plan",
        "Compiles every kind of stage for hardware that is not there; prints what it needs.",
        True,
        {
            "topology": (REQUIRED, "v5e:16x16, v5p:2x2x4, v6e:4x4, h100:8, cpu:8 ..."),
            "stage": ("", "name of a stage; '': every kind of stage"),
            "json": (False, "print JSON"),
            "search": (
                False,
                "try batch, remat, accumulation and mesh; print the best",
            ),
            "price_per_chip_hour": (0.0, "dollars; then the run's price is printed"),
            "hbm_gib": (0.0, "memory of a chip that may be used; 0: all of it"),
            "num_classes": (0, "of a classifier whose data has them; 0: 1000"),
        },
    ),
    "bench": Command(
        "bench",
        "Runs every kind of stage for some steps; prints examples/s, FLOP/s and memory.",
        True,
        {
            "stage": ("", "name of a stage; '': every kind of stage"),
            "json": (False, "print JSON"),
            "input": (True, "run each stage with its data and weights, too"),
            **MACHINE,
        },
    ),
    "eval": Command(
        "measures.evaluate",
        "kNN, linear probe, drift and verdicts of every finished stage of a workdir.",
        True,
        {
            **_WORKDIR,
            "near_copies": (True, "list near-copies of test examples in training data"),
            **_AGAIN,
            **PROCESSES,
            **MACHINE,
        },
    ),
    f"eval {BY_INIT}": Command(
        "measures.checkpoint",
        "kNN, linear probe, few shots and RankMe of any weights, without a config.",
        False,
        {
            "init": (REQUIRED, "folder or file of weights"),
            "data": (REQUIRED, "tfds:NAME, folder:PATH, builtin:NAME; jsonl:PATH ..."),
            "against": ("", "other weights, each read in its own way; then a verdict"),
            "split": ("train", "split that labels are taken from"),
            "test_split": ("test", "a split; rest (of --per_class); fifth (held out)"),
            "per_class": (0, "labelled examples of every class, in 5 draws; 0: all"),
            "out": ("", "the .json to write, too"),
            "data_dir": ("", "where tfds: finds its data sets"),
            "pooling": ("auto", "cls, mean, ... or auto: that of the weights' library"),
            "batch_size": (64, "images or texts at once, on all devices together"),
            **_READING,
            "label_field": ("label", "the column of the labels; '' for none"),
            **_INIT_FORMAT,
            **_OF_IMAGES,
            **PROCESSES,
            **MACHINE,
        },
    ),
    "interpolate": Command(
        "measures.interpolate",
        "Measures start + a (adapted - start) for a from 0 to 1, and can export the best.",
        True,
        {
            **_WORKDIR,
            "stage": (REQUIRED, "name of a finished stage: NAME or NAME/seed_S"),
            "points": (11, "number of values of a"),
            "keep": (0.01, "the loss of accuracy on the source that a may have"),
            "export": (False, "write the best weights into interpolated/NAME"),
            **_AGAIN,
            **MACHINE,
        },
    ),
    "report": Command(
        "report",
        "Writes report.html into a workdir: what a run did, and whether it helped.",
        False,
        {
            "workdir": (REQUIRED, "folder of a run that has finished a stage"),
            **MACHINE,
        },
    ),
    "compare": Command(
        "compare",
        "Compares workdirs: prints one table of their stages, and writes one page.",
        False,
        {
            "out": ("compare.html", "the page to write"),
            **MACHINE,
        },
        ("workdirs", "DIR1 DIR2 ...; the others are compared with the first"),
    ),
    "features": Command(
        "features",
        "Writes embeddings, labels and example names of a data set to a file.",
        False,
        {
            "init": (REQUIRED, "folder or file of weights"),
            "data": (REQUIRED, "tfds:NAME, folder:PATH, builtin:NAME; jsonl:PATH ..."),
            "out": (REQUIRED, "the .npz, .csv or .parquet to write"),
            **_SPLIT,
            "pooling": ("auto", "cls, mean, ... or auto: that of the weights' library"),
            "batch_size": (64, "images or texts at once, on all devices together"),
            **_READING,
            "label_field": ("label", "the column of the labels; '' for none"),
            "label_kind": ("class", "text: class or number"),
            **_INIT_FORMAT,
            **_OF_IMAGES,
            **PROCESSES,
            **MACHINE,
        },
    ),
    "predict": Command(
        "predict",
        "Writes the predicted class and the probability of each class for a data set.",
        False,
        {
            "init": (REQUIRED, "export of a fine-tuned stage, or other classifier"),
            "data": (REQUIRED, "folder:PATH, csv:PATH, tfds:NAME, jsonl:PATH ..."),
            "out": (REQUIRED, "the .csv, .jsonl or .parquet to write"),
            **_SPLIT,
            "batch_size": (64, "images or texts at once, on all devices together"),
            **_READING,
            **_INIT_FORMAT,
            **_OF_IMAGES,
            **PROCESSES,
            **MACHINE,
        },
    ),
    "convert": Command(
        "convert",
        "Writes weights in another format, tensor by tensor; prints a report on each.",
        False,
        {
            "from": (REQUIRED, "folder or file of weights"),
            "to": (REQUIRED, "folder or file to write; must not be there yet"),
            "from_format": ("", f"{_FORMATS}; '': detected"),
            "format": ("huggingface", _FORMATS),
            "task": ("", "mae, mlm, classify or encoder; '': all parts of the model"),
            "known": ("", "facts that the file lacks: heads=6,weights=model_ema"),
            "change": ("", "fields of the written config: layer_norm_eps=1e-6"),
            "fresh": ([], "parts with new random values: head (may be repeated)"),
            "num_classes": (0, "classes of a fresh head; 0: those of the old head"),
            "seed": (0, "seed of fresh parts"),
        },
    ),
    "fill": Command(
        "fill",
        "Prints the likeliest tokens for every mask token of a text.",
        False,
        {
            "init": (REQUIRED, "Hugging Face folder of a masked language model"),
            "text": (REQUIRED, "a text with one mask token or more, such as [MASK]"),
            "top": (5, "how many tokens to print for each"),
            **_INIT_FORMAT,
        },
    ),
    "show": Command(
        "show",
        "Lists the arguments of a config, or with --fields every field that it resolves to.",
        False,
        {
            "config": (REQUIRED, "file or shipped name, NAME:argument=value,..."),
            "fields": (False, "the fields of the resolved config, with their values"),
            "json": (False, "as JSON, with all that is said of each argument"),
        },
    ),
    "configs": Command(
        "list_configs",
        "Lists the shipped configs with the first line of their docstrings.",
        False,
        {},
    ),
}
