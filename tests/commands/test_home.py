"""`~` in every flag and every field of a config that is a path."""

import pytest
from ml_collections import ConfigDict
from support import tiny_files, tiny_text

from flax_adapt import __main__, data, weights
from flax_adapt.base import config as configs
from flax_adapt.base.errors import UserError
from flax_adapt.experiment import measure, recipe
from flax_adapt.stage import stage as stages

# Every flag of every command: those that are paths, and those that are not.
PATHS = {
    "bench": set(),
    "run": {"workdir"},
    "adapt": {
        *("workdir", "init", "unlabelled", "labelled", "test", "source", "data_dir")
    },
    "eval": {"workdir"},
    "eval --init": {"init", "against", "data", "out", "data_dir"},
    "report": {"workdir"},
    "interpolate": {"workdir"},
    "compare": {"out"},
    "features": {"init", "data", "out", "data_dir"},
    "plan": set(),
    "predict": {"init", "data", "out", "data_dir"},
    "convert": {"from", "to"},
    "fill": {"init"},
    "show": {"config"},
    "configs": set(),
}
PROCESSES = {
    *("coordinator", "num_processes", "process_id", "peer_timeout", "stop_code")
}
OTHERS = {
    "run": PROCESSES | {"force", "report"},
    "adapt": {
        *("method", "budget", "precision", "init_format", "augment", "fit", "force"),
        *("image_field", "label_field", "split_field", "text_field", "seq_len"),
        *("dry_run", "stop_code", "report", "watch", "on_hurt", "window", "bits"),
        *("seeds", "near_copies"),
    },
    "eval": PROCESSES | {"near_copies", "report"},
    "eval --init": {
        *PROCESSES,
        *("split", "test_split", "per_class", "pooling", "batch_size", "precision"),
        *("max_bad_fraction", "seq_len", "text_fields", "label_field", "init_format"),
        *("init_known", "mean", "std", "image_field", "window", "bits", "fit"),
        "split_field",
    },
    "report": set(),
    "interpolate": {"stage", "points", "keep", "export", "report"},
    "compare": set(),
    "features": {
        *PROCESSES,
        *("split", "pooling", "batch_size", "precision", "max_bad_fraction", "seq_len"),
        *("text_fields", "label_field", "label_kind", "init_format", "init_known"),
        *("mean", "std", "image_field", "split_field", "window", "bits", "fit"),
    },
    "plan": {
        *("topology", "stage", "num_classes", "hbm_gib", "price_per_chip_hour"),
        *("search", "json"),
    },
    "predict": {
        *PROCESSES,
        *("seq_len", "mean", "std", "image_field", "init_format", "init_known"),
        *("window", "bits", "fit", "precision", "batch_size", "split", "text_fields"),
        *("max_bad_fraction", "split_field"),
    },
    "convert": {
        *("from_format", "format", "task", "known", "change", "fresh", "num_classes"),
        "seed",
    },
    "fill": {"text", "top", "init_format"},
    "bench": {"stage", "json", "input"},
    "show": {"fields", "json"},
    "configs": set(),
}
# Fields of configs that may be paths.
FIELDS = {"init", "init_from", "teacher", "source", "data_dir", "tokenizer"}
pytestmark = pytest.mark.usefixtures("compile_fast", "at_home")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    root = tmp_path_factory.mktemp("home")
    tiny_files.everything(root)
    (root / "table.csv").write_text("text,label\na b,x\nc,y\n")
    (root / "table.tsv").write_text("text\tlabel\na b\tx\nc\ty\n")
    (root / "lines.txt").write_text("a b\nc d\n")
    return root


@pytest.fixture
def at_home(home, monkeypatch, tmp_path):
    """A home directory, and an empty current one that stays without `~`."""
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.glob("~*"))


def test_every_flag_is_known_to_be_a_path_or_not():
    for name, command in __main__.COMMANDS.items():
        # Of the machine, in all commands that compute: a path (compile_cache) and a word.
        flags = {*command.flags} - {"compile_cache", "malloc"}
        assert PATHS[name] | OTHERS[name] == flags
        assert not PATHS[name] & OTHERS[name]


@pytest.mark.parametrize(
    ("line", "written"),
    [
        ("features --init=~/mae --data=folder:~/images --out=~/x.npz", "x.npz"),
        ("convert --from=~/mae --to=~/copy", "copy/config.json"),
        ("fill --init=~/bert --text=[MASK]", "bert/config.json"),
    ],
)
def test_flags_of_files(main, home, line, written):
    assert main(*line.split())[0] == 0
    assert (home / written).is_file()


def test_the_sources_of_adapt(home):
    sources = "unlabelled=folder:~/images,labelled=folder:~/images,test=folder:~/images"
    stages = configs.load(f"adapt:init=~/mae,{sources}").stages
    assert stages[-1].eval.data.split == "test"


def test_the_data_dir_of_features(main, home):
    line = "features --init=~/mae --data=tfds:nope --out=~/y.npz --data_dir=~/tfds"
    code, _, error = main(*line.split())
    assert (code, f"data_dir='{home}/tfds'" in error) == (2, True)


@pytest.mark.parametrize("command", ["run", "eval"])
def test_the_workdir_and_the_file_of_the_config(main, home, monkeypatch, command):
    config = "from support import tiny\n\ndef get_config():\n    "
    (home / "tiny.py").write_text(f"{config}return tiny.experiment(tiny.pretrain())\n")
    folders = []

    def noted(config, workdir, **options):
        folders.append(workdir)
        raise UserError("enough")

    monkeypatch.setattr(recipe, "run", noted)
    monkeypatch.setattr(measure, "evaluate", noted)
    assert main(command, "--config=~/tiny.py", "--workdir=~/run")[2] == (
        "flax-adapt: enough\n"
    )
    assert folders == [home / "run"]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_self_distill", "dataset=folder:~/images,init=~/mae"),
        ("bert_self_distill", "dataset=jsonl:~/texts,init=~/bert"),
    ],
)
def test_arguments_of_configs_and_their_fields(home, name, arguments):
    """A config keeps `~` as it was typed: its workdir may be continued by another home."""
    config = configs.load(f"{name}:{arguments}")
    fields = configs.flatten(configs.plain(config))
    found = {
        key.rpartition(".")[2]
        for key, value in fields.items()
        if isinstance(value, str) and "~" in value
    }
    assert {"init", "source"} <= found <= FIELDS
    assert not [value for value in fields.values() if str(home) in str(value)]
    assert len(data.open_examples(config.stages[0].data, ""))


@pytest.mark.parametrize(
    "source",
    ["jsonl:~/texts", "csv:~/table.csv", "tsv:~/table.tsv", "text:~/lines.txt"],
)
def test_sources_of_texts_and_their_tokenizer(source):
    label = "" if source.startswith("text:") else "label"
    section = tiny_text.section(source, "~/bert", label_field=label)
    assert len(data.open_examples(ConfigDict(section), ""))


@pytest.mark.parametrize("field", ["init_from", "teacher"])
@pytest.mark.parametrize("text", ["~/mae", "pretrained"])
def test_weights_that_a_stage_refers_to(home, tmp_path, field, text):
    config = configs.load("vit_further_pretrain:dataset=folder:~/images,init=~/mae")
    stage = stages.Stage(config, config.stages[0], 0, tmp_path)
    assert stages.locate_weights(stage, field, text) == home / "mae"


def test_the_library_reads_and_writes_at_home(home):
    model, params, _ = weights.from_pretrained("~/mae", "encoder")
    weights.save_pretrained("~/saved", model, params)
    assert weights.model_config("~/saved") == weights.model_config(home / "saved")
    assert weights.parts("~/mae", "mae") == weights.parts(home / "mae", "mae")
    assert weights.pixel_statistics("~/mae") is not None
    assert weights.class_names("~/mae") is None
