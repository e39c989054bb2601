"""Writes the pages on configs, fields and commands from the code, when MkDocs builds.

The results of benchmarks and the changelog are pages, too, from where they lie.
"""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flax_adapt import __main__, defaults
from flax_adapt.base import arguments
from flax_adapt.base import config as configs

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
NOTEBOOKS = ROOT / "docs" / "notebooks"

# What the functions that make sections of a config cannot do without.
_IMAGES = {"source": "folder:PATH", "split": "train"}
NEEDED: dict[str, dict[str, Any]] = {
    "experiment": dict(init="PATH", model={}, evaluate=None, stages=()),
    "image_data": _IMAGES | dict(image_size=224, channels=3, mean=(), std=()),
    "text_data": _IMAGES | {"source": "jsonl:PATH", "tokenizer": "PATH"},
    "pretrain_stage": dict(name="NAME", data={}),
    "finetune_stage": dict(name="NAME", data={}, test_data={}),
    "text_pretrain_stage": dict(name="NAME", texts={}, mask_token_id=103),
    "text_finetune_stage": dict(name="NAME", texts={}, test={}, pooling="pooler"),
    "text_optim": dict(num_steps=12_500),
    "text_finetune_optim": dict(num_steps=1_000),
    "probe_optim": dict(num_steps=1_000, lr=0.1),
    "evaluate": dict(train={}, test={}),
    "mlm": dict(mask_token_id=103),
    "few": dict(per_class=10, labels="each_seed"),
    "replay": dict(source="a data section", ratio=0.5),
    "resize": dict(width=1_536),
    "sweep": dict(lrs=(1e-4, 1e-3)),
    "ewc": dict(of="stage:NAME"),
    "lwf": dict(of="stage:NAME"),
    "watch": dict(metric="target/knn"),
    "der": dict(of=("stage:NAME",)),
}
# Functions of `defaults` that make something else than one section.
OTHERS = {
    "mae_finetune",
    "make_config",
    "dataset",
    "small_mae",
    "pixel_statistics",
    "read_images_as",
    "distill_stages",
    "self_distill_stages",
}


def arguments_of(path: Path) -> dict[str, Any]:
    """Returns the arguments of a config file with their defaults."""
    return configs.argument_defaults(str(path))


def configs_page() -> str:
    """Every shipped config: its docstring, its arguments and their defaults."""
    lines = [
        "# Configs",
        "",
        "`flax-adapt run --config=NAME:argument=value,... --workdir=DIR` runs a shipped config,",
        "`--config=FILE.py` one of your own. Every field of the resolved config can be changed",
        "by `--config.FIELD=VALUE`: [fields](fields.md).",
        "",
    ]
    for name, path in configs.list_shipped().items():
        text = _docstring(path)
        lines += [f"## {name}", "", "```text", text, "```", ""]
        lines += _argument_table(path)
    return "\n".join(lines)


def _argument_table(path: Path) -> list[str]:
    """Returns what `flax-adapt show --config=NAME` lists."""
    rows = [
        f"| `{one.name}` | {one.type} | `{one.default!r}` | {_cell(one.help)} |"
        for one in arguments.arguments_of(str(path))
    ]
    return ["| argument | type | default | |", "|---|---|---|---|", *rows, ""]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _docstring(path: Path) -> str:
    """Returns it as written: a backslash at the end of a line of a command stays."""
    text = path.read_text("utf-8").split('"""')[1]
    return inspect.cleandoc(text)


def _table(what: str, values: dict[str, Any]) -> list[str]:
    rows = [f"| `{name}` | `{value!r}` |" for name, value in values.items()]
    return [f"| {what} | default |", "|---|---|", *rows, ""]


def sections() -> dict[str, Callable[..., Any]]:
    """Returns the public functions that make a section of a config, by name."""
    functions = {name: getattr(defaults, name) for name in defaults.__all__}
    return {
        name: function
        for name, function in functions.items()
        if inspect.isfunction(function) and name not in OTHERS
    }


def fields_of(name: str) -> dict[str, Any]:
    """Returns {dotted field: default} of the section that `defaults.NAME` makes."""
    made = getattr(defaults, name)(**NEEDED.get(name, {}))
    return configs.flatten(configs.plain(made))


def fields_page() -> str:
    """Every field of every section, from the functions that make them."""
    lines = [
        "# Fields",
        "",
        "A config is `experiment` with its stages; each section below is made by a function of",
        "`flax_adapt.defaults` of that name, which takes changes by keyword. A field of",
        "stage 0 is changed by `--config.stages.0.FIELD=VALUE`. What a function must be given is",
        "shown as PATH, NAME or a typical number.",
        "",
    ]
    for name, function in sections().items():
        lines += [f"## {name}", "", inspect.getdoc(function) or "", ""]
        lines += _table("field", fields_of(name))
    return "\n".join(lines)


def commands_page() -> str:
    """What `flax-adapt --help` and `flax-adapt COMMAND --help` print."""
    lines = ["# Commands", "", "```text", __main__.usage(), "```", ""]
    for command in __main__.COMMANDS:
        lines += [f"## {command}", "", "```text", __main__.describe(command), "```", ""]
    return "\n".join(lines)


def results_page() -> str:
    """A list of what was run; each page starts with its command."""
    lines = [
        "# Experiments",
        "",
        "What we ran, each with the command that runs it again, whatever it showed.",
        "",
    ]
    for path in sorted(RESULTS.glob("*.md")):
        title = path.read_text("utf-8").partition("\n")[0].removeprefix("# ")
        lines.append(f"* [{title}]({path.name})")
    return "\n".join(lines) + "\n"


def notebook_page(path: Path) -> str:
    """A notebook as it was run: its text, its code, and what each cell printed."""
    lines = []
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            lines += [source, ""]
            continue
        lines += ["```python", source, "```", ""]
        printed = "".join(map(_output_text, cell["outputs"])).rstrip()
        if printed:
            lines += ["```text", printed, "```", ""]
    return "\n".join([*lines, f"[The notebook]({path.name}) itself.", ""])


def _output_text(output: dict[str, Any]) -> str:
    """The text of an output of a cell: what it printed, or its value."""
    if output["output_type"] == "stream":
        return "".join(output["text"])
    return "".join(output["data"]["text/plain"]) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "configs.md": configs_page,
    "fields.md": fields_page,
    "commands.md": commands_page,
    "results/index.md": results_page,
}


def on_config(config: Any) -> Any:
    """MkDocs calls this first: every result is a page of the section Experiments."""
    pages = [
        "results/index.md",
        *sorted(f"results/{p.name}" for p in RESULTS.glob("*.md")),
    ]
    config.nav = [
        {"Experiments": pages} if "Experiments" in entry else entry
        for entry in config.nav
    ]
    return config


def on_files(files: Any, config: Any) -> Any:
    """MkDocs calls this when it has found the pages that are files."""
    from mkdocs.structure.files import File  # the pages themselves need no MkDocs

    for name, write in PAGES.items():
        files.append(File.generated(config, name, content=write()))
    for path in NOTEBOOKS.glob("*.ipynb"):
        name = f"notebooks/{path.stem}.md"
        files.append(File.generated(config, name, content=notebook_page(path)))
    copied = [("changelog.md", ROOT / "CHANGELOG.md")]
    copied += [(f"results/{path.name}", path) for path in RESULTS.glob("*.*")]
    for name, path in copied:
        files.append(File.generated(config, name, content=path.read_bytes()))
    return files
