"""Writes report.html: one file that needs no network, for a desk and for a phone.

The sections are functions of a `Run`. One that has nothing to show returns None, and is
left out of the page; so is one that fails, with a line in the log.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from flax_adapt.base import logs
from flax_adapt.base.version import __version__
from flax_adapt.data import source
from flax_adapt.report import (
    arms,
    attentions,
    curves,
    examples,
    facts,
    maps,
    outcomes,
    recipe,
    reconstructions,
    stages,
    texts,
    transfers,
    workdir,
)
from flax_adapt.report.verdicts import cards
from flax_adapt.report.workdir import Run

FILE = "report.html"
log = logging.getLogger(__name__)


class Section(NamedTuple):
    """A section of the page: its title, and the function that finds what it shows.

    The macro of page.html with the section's name shows it.
    """

    title: str
    find: Callable[[Run], dict[str, Any] | None]


SECTIONS = {
    "verdict": Section("Did it help?", cards.find_verdicts),
    "results": Section("Results", outcomes.results),
    "recipe": Section("Recipe", recipe.tree),
    "pairs": Section("Every pair of arms", outcomes.pairs),
    "curves": Section("Curves", curves.charts),
    "stages": Section("From stage to stage", stages.over_stages),
    "classes": Section("Classes before and after", arms.class_changes),
    "confusion": Section("Confusion matrix", arms.confusion),
    "examples": Section("Examples", examples.examples),
    "reconstructions": Section("Reconstructions", reconstructions.reconstructions),
    "masks": Section("Filled masks", texts.filled_masks),
    "tokens": Section("Tokens that moved most", texts.moved_tokens),
    "attentions": Section("Attention", attentions.attentions),
    "maps": Section("Features", maps.feature_maps),
    "transfer": Section("Transfer", transfers.matrices),
    "features": Section("Target and source", transfers.features),
    "measures": Section("Frozen features", transfers.measures),
    "interpolated": Section("From start to adapted", stages.interpolated),
    "throughput": Section("Time and throughput", curves.throughput),
    "data": Section("Data", facts.data_sets),
    "imports": Section("Initial weights", facts.imports),
    "commands": Section("Commands and versions", facts.commands),
    "config": Section("Config", facts.config),
}


def write(folder: Path) -> Path:
    """Returns report.html of a workdir, written whole or not at all.

    Raises UserError for a folder without config or results.
    """
    run = workdir.read(folder)
    with source.keep_open():
        found = {name: _find(section, run) for name, section in SECTIONS.items()}
    shown = {name: parts for name, parts in found.items() if parts is not None}
    target = folder / FILE
    with logs.replace_file(target) as file:
        file.write(render(run.folder.resolve().name, shown).encode("utf-8"))
    return target


def _find(section: Section, run: Run) -> dict[str, Any] | None:
    """Returns what a section shows; None, with a line in the log, where it fails."""
    try:
        return section.find(run)
    except Exception as error:
        log.info("report: %r is left out (%s)", section.title, _one_line(error))
        return None


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def write_or_warn(folder: Path) -> Path | None:
    """Returns the report of a run, None where it cannot be made: the run has its results.

    Process 0 alone.
    """
    if jax.process_index():
        return None
    try:
        return write(folder)
    except Exception as error:
        log.warning("no report was written (%s)", _one_line(error))
        return None


def rewrite_or_warn(folder: Path) -> Path | None:
    """Returns `write_or_warn` where the workdir has a report; None where it has none."""
    return write_or_warn(folder) if (folder / FILE).exists() else None


def render(title: str, shown: Mapping[str, Any]) -> str:
    """Returns the page of the sections in `shown`, {name in SECTIONS: what it shows}."""
    titles = {name: section.title for name, section in SECTIONS.items()}
    fields = dict(title=title, sections=shown, titles=titles, version=__version__)
    return render_template("page.html", **fields)


def render_template(name: str, **fields: Any) -> str:
    """Returns a template of this folder with its fields; text in them is escaped."""
    import jinja2

    here = Path(__file__).parent
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (here / "style.css").read_text("utf-8")
    page = templates.get_template(name).render(style=style, **fields)
    return "\n".join(filter(str.strip, page.splitlines())) + "\n"
