"""Models and data sets of the Hugging Face Hub by name: downloaded once, then cached.

A name is `ORG/NAME`, `ORG/NAME@REVISION`, or the same after `hf://`. The variables
HF_ENDPOINT, HF_HUB_CACHE, HF_HUB_OFFLINE and HF_TOKEN mean what they mean elsewhere.
"""

import fnmatch
import functools
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flax_adapt.base.errors import UserError
from flax_adapt.base.paths import user_path
from flax_adapt.base.remote import addresses, copies, hub_cache
from flax_adapt.base.remote.hub_cache import Repository

_PART = r"[\w][\w.-]*"
_NAME = re.compile(rf"(?:hf://)?({_PART}/{_PART})(?:@([\w./-]+))?")
# A folder of the cache: models--ORG--NAME/snapshots/COMMIT.
_CACHED = re.compile(r"/models--([^/]+--[^/]+)/snapshots/(\w+)(?:/|$)")
_SECONDS = 20  # until the Hub is taken for unreachable
CONFIG, _LONGEST = "config.json", 100
# The model_type of those folders of transformers, and of ours, that `weights` reads: looked at
# before gigabytes are fetched.
MODEL_TYPES = (
    *("vit", "vit_mae", "deit", "clip", "clip_vision_model", "dinov2", "dinov2_mae"),
    *("dinov2_with_registers", "dinov2_with_registers_mae", "dinov3_vit"),
    *("flax_adapt_vit", "bert", "roberta", "xlm-roberta", "camembert", "distilbert"),
    *("electra", "modernbert", "resnet"),
)
RESIZED = "_resized"  # at the end of the name, of a model with another last block
# Names of files -> those that are needed.
Choose = Callable[[Sequence[str]], list[str]]


class Fetched(NamedTuple):
    """A downloaded repository: its folder in the cache, its name and its commit."""

    folder: Path
    name: str
    revision: str


def parse_name(text: str) -> tuple[str, str | None] | None:
    """Returns (ORG/NAME, revision or None) of a name; None of what can be none."""
    found = _NAME.fullmatch(text)
    return (found[1], found[2]) if found else None


def fetch(what: str, kind: str, choose: Choose) -> Fetched:
    """Returns the chosen files of a repository, downloaded or found in the cache.

    what: the name, as typed. kind: "model" or "dataset". choose: of the names of all files
    those that are needed; raises UserError where they are not there. Without network the
    cache is used. Raises UserError, with what to do, for a name that does not exist or is
    gated, and where neither the Hub nor the cache has the files.
    """
    import huggingface_hub

    parsed = parse_name(what)
    if parsed is None:
        raise UserError(
            f"{what} is no name on the Hub, which is ORG/NAME or ORG/NAME@REVISION"
        )
    repository = Repository(what, *parsed, kind)
    endpoint = os.environ.get("HF_ENDPOINT") or None
    with hub_cache.quiet():
        try:
            found = huggingface_hub.HfApi(endpoint=endpoint).repo_info(
                repository.name,
                revision=repository.revision,
                repo_type=kind,
                timeout=_SECONDS,
            )
        except Exception as error:
            # Each version raises errors of other classes; none tells the user what to do.
            if (problem := _refusal(what, kind, error)) is not None:
                raise UserError(problem) from error
            return _from_cache(repository, choose, error)
        return _download(repository, found, choose, endpoint)


def _download(
    repository: Repository, info: Any, choose: Choose, endpoint: str | None
) -> Fetched:
    """Returns the chosen files of a repository that the Hub answered for."""
    what, names = repository.typed, [file.rfilename for file in info.siblings or ()]
    wanted = choose(names)
    try:
        hub_cache.mark(repository, info.sha, wanted)
        if repository.kind == "model" and CONFIG in wanted:
            theirs = hub_cache.read_first(repository, info.sha, CONFIG, endpoint)
            check_architecture(what, theirs)
        snapshot = hub_cache.download(repository, wanted, endpoint)
    except UserError:
        raise
    except Exception as error:
        problem = _refusal(what, repository.kind, error)
        raise UserError(problem or hub_cache.describe_failure(what, error)) from error
    return _check_whole(repository, snapshot, wanted)


def _from_cache(repository: Repository, choose: Choose, error: Exception) -> Fetched:
    """Returns the files of the cache; raises UserError where they are not all there."""
    why, what = hub_cache.reason(error), repository.typed
    out_of_reach = (
        "the Hub cannot be reached"
        if hub_cache.is_of_network(error)
        else "asking the Hub for it failed"
    )
    snapshot = hub_cache.find_snapshot(repository)
    if snapshot is None:
        raise UserError(
            f"{what}: there is no such folder, {out_of_reach}, and it is not in the "
            f"cache: connect once, or give a folder with its files ({why})"
        ) from error
    try:
        wanted = choose(hub_cache.list_files(snapshot))
    except UserError:
        raise UserError(
            f"{what}: {out_of_reach}, and only a part of it was downloaded: run again "
            f"with a connection ({why})"
        ) from error
    return _check_whole(repository, snapshot, wanted)


def _check_whole(
    repository: Repository, snapshot: Path, wanted: Sequence[str]
) -> Fetched:
    missing = hub_cache.list_missing(snapshot, wanted)
    if missing:
        raise UserError(
            f"{repository.typed}: only a part of it was downloaded, {missing[:3]} are "
            "missing: run again with a connection"
        )
    hub_cache.remember(repository.typed, snapshot)
    return Fetched(snapshot, repository.name, snapshot.name)


def check_architecture(what: str, theirs: Any) -> None:
    """Raises UserError for a config.json of transformers whose model is not read here."""
    found = theirs.get("model_type") if isinstance(theirs, dict) else None
    if isinstance(found, str) and found.removesuffix(RESIZED) not in MODEL_TYPES:
        raise UserError(
            f"{what}: model_type={found[:_LONGEST]!r} of its config.json is not one of "
            f"{MODEL_TYPES}"
        )


def _refusal(what: str, kind: str, error: Exception) -> str | None:
    """What is said of an answer of the Hub; None where there was no answer."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}"
    page += (parse_name(what) or ("",))[0]
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{what} is gated: accept its terms on {page}, then run `hf auth login` or set "
            "HF_TOKEN"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{what}: the Hub has no such revision; see {page}/commits"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{what}: there is no such folder, and no such {kind} on the Hub (or it is private "
            "and needs `hf auth login`)"
        )
    return None


def match(names: Sequence[str], *patterns: str) -> list[str]:
    """Returns those of the names that match one of the patterns, as `fnmatch` does."""
    return [
        n for n in names if any(fnmatch.fnmatch(n, pattern) for pattern in patterns)
    ]


# Beside the weights: what a model folder has, as transformers and timm write it.
_BESIDE = ("*.json", "vocab.txt", "merges.txt")


def weights_path(text: str | os.PathLike[str]) -> Path:
    """Returns the folder or file of weights that a user typed: a path, or a name on the Hub.

    Of an address such as gs://, it is a copy. A path that exists wins. Raises UserError for
    a name that cannot be fetched, see `fetch`.
    """
    if str(text).startswith("hf://"):
        return fetch_weights(str(text)).folder
    if addresses.is_address(text):
        return copies.fetch_weights(addresses.parse(text))
    path = user_path(text)
    if path.exists() or parse_name(str(text)) is None:
        return path
    return fetch_weights(str(text)).folder


@functools.cache
def fetch_weights(name: str) -> Fetched:
    """Returns the model of a name; asked for once in a process."""

    def choose(names: Sequence[str]) -> list[str]:
        try:
            return choose_weights(names)
        except UserError as lacks:
            raise UserError(f"{name}: {lacks}") from None

    return fetch(name, "model", choose)


def describe_origin(path: Path) -> dict[str, str]:
    """Returns {"name": ORG/NAME, "revision": commit} of a folder of the cache; {} of others."""
    found = _CACHED.search(path.as_posix())
    return (
        {"name": found[1].replace("--", "/", 1), "revision": found[2]} if found else {}
    )


def choose_weights(names: Sequence[str]) -> list[str]:
    """Returns the files of a model: safetensors where there are any, else torch's or NumPy's.

    Only files of the top folder; of several sets of weights the usual one. Raises UserError
    where there are none.
    """
    top = [name for name in names if "/" not in name]
    for wanted in _WEIGHTS:
        if found := match(top, *wanted):
            return [*found, *(n for n in match(top, *_BESIDE) if n not in found)]
    raise UserError(f"it has no weights that are read here, only {sorted(names)[:10]}")


# In this order; several patterns are the shards of one model.
_WEIGHTS = (
    ("model.safetensors",),
    ("model-*-of-*.safetensors",),
    ("pytorch_model.bin",),
    ("pytorch_model-*-of-*.bin",),
    ("*.safetensors",),
    ("*.npz",),
    ("*.pth",),
)
