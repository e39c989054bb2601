"""The cache of the Hugging Face Hub: downloads into it, and what is there without network.

A folder of the cache does not tell which files were wanted. While some are missing, a list of
them lies beside its snapshots, `unfinished/COMMIT.json`: a download that broke off, or whose
process was killed, is not taken for a complete one later.
"""

import contextlib
import importlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flax_adapt.base import errors

# They log each attempt, where a failure is told in one line.
_LOGGERS = ("huggingface_hub", "httpx", "httpx2", "httpcore", "httpcore2", "urllib3")
# Base classes of errors of connections, in requests and in the versions of httpx.
_NETWORK = {"ConnectionError", "TimeoutError", "TransportError", "RequestException"}
_NETWORK |= {"HfHubHTTPError", "OfflineModeIsEnabled"}
_TOO_SHORT = "Consistency check failed"  # an OSError: the file ended early
_LONGEST = 120
# Folder of a fetched snapshot -> the name that was typed.
_TYPED: dict[str, str] = {}


class Repository(NamedTuple):
    """A repository of the Hub: the text that was typed, and what it says.

    name: ORG/NAME. revision: None where none was typed. kind: "model" or "dataset".
    """

    typed: str
    name: str
    revision: str | None
    kind: str

    @property
    def folder(self) -> Path:
        """Where the cache has it."""
        from huggingface_hub import constants

        cache = Path(os.environ.get("HF_HUB_CACHE") or constants.HF_HUB_CACHE)
        return cache / f"{self.kind}s--{self.name.replace('/', '--')}"


def find_snapshot(repository: Repository) -> Path | None:
    """Returns the folder of a revision in the cache, whole or not; None: there is none.

    The library's own search wants all files of a repository, not only the chosen ones.
    """
    revision = repository.revision or "main"
    ref = repository.folder / "refs" / revision
    commit = ref.read_text("utf-8").strip() if ref.is_file() else revision
    snapshot = repository.folder / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def list_files(snapshot: Path) -> list[str]:
    """Returns the names of the files that are there: a link that leads nowhere is none."""
    return [
        file.relative_to(snapshot).as_posix()
        for file in sorted(snapshot.rglob("*"))
        if file.is_file()
    ]


def list_missing(snapshot: Path, wanted: Sequence[str]) -> list[str]:
    """Returns those of the wanted files, and of those once wanted, that are not there."""
    marker = _marker(snapshot)
    listed = json.loads(marker.read_text("utf-8")) if marker.is_file() else []
    both = dict.fromkeys([*listed, *wanted])
    return [name for name in both if not (snapshot / name).is_file()]


def _marker(snapshot: Path) -> Path:
    return snapshot.parent.parent / "unfinished" / f"{snapshot.name}.json"


def mark(repository: Repository, commit: str, wanted: Sequence[str]) -> None:
    """Notes which files of a commit are wanted, until all of them are there."""
    snapshot = repository.folder / "snapshots" / commit
    if any(not (snapshot / name).is_file() for name in wanted):
        marker = _marker(snapshot)
        marker.parent.mkdir(parents=True, exist_ok=True)
        temporary = marker.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps([*wanted]), "utf-8")
        temporary.replace(marker)


def download(
    repository: Repository, wanted: Sequence[str], endpoint: str | None
) -> Path:
    """Returns the snapshot with the wanted files; raises whatever the library raises."""
    # By the revision's name, which the cache then knows without network.
    snapshot = _fetch_files(repository, repository.revision, wanted, endpoint)
    if not list_missing(snapshot, wanted):
        _marker(snapshot).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # none, or another commit is unfinished
            _marker(snapshot).parent.rmdir()
    return snapshot


def read_first(
    repository: Repository, commit: str, name: str, endpoint: str | None
) -> Any:
    """Returns the content of a JSON file, fetched alone; None for what is no JSON."""
    file = _fetch_files(repository, commit, [name], endpoint) / name
    try:
        return json.loads(file.read_bytes())
    except ValueError:  # the reader of weights tells what is wrong with it
        return None


def _fetch_files(
    repository: Repository,
    revision: str | None,
    names: Sequence[str],
    endpoint: str | None,
) -> Path:
    import huggingface_hub

    with _bars() as bar:
        text = huggingface_hub.snapshot_download(
            repository.name,
            repo_type=repository.kind,
            revision=revision,
            cache_dir=repository.folder.parent,
            allow_patterns=[*names],
            endpoint=endpoint,
            tqdm_class=bar,
        )
    return Path(text)


@contextlib.contextmanager
def _bars() -> Iterator[type]:
    """Yields the class of progress bars: gone at the end, none where nobody looks on."""
    from huggingface_hub.utils import tqdm

    made: list[Any] = []

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any):
            hidden = options.get("disable") or not sys.stderr.isatty()
            options |= dict(leave=False, disable=hidden)
            super().__init__(*args, **options)
            made.append(self)

    try:
        yield Bar
    finally:
        for bar in made:
            bar.close()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the library and its clients from logging, unless HF_DEBUG or the like is set."""
    # It sets the level of its log when it is first imported, which may be later.
    importlib.import_module("huggingface_hub.utils.logging")
    asked = {"HF_DEBUG", "HF_HUB_VERBOSITY"} & {*os.environ}
    loggers = [] if asked else [logging.getLogger(name) for name in _LOGGERS]
    levels = [one.level for one in loggers]
    try:
        for one in loggers:
            one.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)


def reason(error: BaseException) -> str:
    """Returns the innermost error of a chain, short and in one line."""
    last = _chain(error)[-1]
    return f"{type(last).__name__}: {' '.join(str(last).split())[:_LONGEST]}"


def _chain(error: BaseException) -> list[BaseException]:
    found = [error]
    while found[-1].__cause__ is not None:
        found.append(found[-1].__cause__)
    return found


def is_of_network(error: BaseException) -> bool:
    """Whether an error comes from the connection to the Hub, and not from this machine."""
    chain = _chain(error)
    names = {base.__name__ for one in chain for base in type(one).__mro__}
    return bool(names & _NETWORK) or any(
        str(one).startswith(_TOO_SHORT) for one in chain
    )


def describe_failure(typed: str, error: BaseException) -> str:
    """Returns what is said of a download that began, and failed."""
    full = errors.full_disk(error)
    if full is not None:
        return (
            f"{typed}: the download stopped ({full}): make room, then run the same command "
            "again: it fetches what is missing"
        )
    if is_of_network(error):
        return (
            f"{typed}: the download broke off ({reason(error)}): run the same command "
            "again, it goes on with the files that are missing"
        )
    return f"{typed}: cannot be downloaded ({reason(error)})"


def remember(typed: str, snapshot: Path) -> None:
    """Lets `restore` know what was typed for a snapshot."""
    _TYPED[str(snapshot)] = typed


def restore(text: str) -> str:
    """Returns a text with what was typed in place of the paths of fetched snapshots."""
    for folder, typed in _TYPED.items():
        text = text.replace(folder, typed)
    return text
