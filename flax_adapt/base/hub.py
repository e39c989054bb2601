"""Models and data sets of the Hugging Face Hub by name: downloaded once, then cached.

A name is `ORG/NAME`, `ORG/NAME@REVISION`, or the same after `hf://`. The variables
HF_ENDPOINT, HF_HUB_CACHE, HF_HUB_OFFLINE and HF_TOKEN mean what they mean elsewhere.
"""

import fnmatch
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flax_adapt.base.errors import UserError

_PART = r"[\w][\w.-]*"
_NAME = re.compile(rf"(?:hf://)?({_PART}/{_PART})(?:@([\w./-]+))?")
_SECONDS = 20  # until the Hub is taken for unreachable
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
    name, revision = parsed
    options: dict[str, Any] = dict(
        repo_type=kind, cache_dir=os.environ.get("HF_HUB_CACHE") or None
    )
    endpoint = os.environ.get("HF_ENDPOINT") or None
    try:
        found: Any = huggingface_hub.HfApi(endpoint=endpoint).repo_info(
            name, revision=revision, repo_type=kind, timeout=_SECONDS
        )
        wanted = choose([file.rfilename for file in found.siblings or ()])
        folder = huggingface_hub.snapshot_download(
            *(name,),
            revision=found.sha,
            allow_patterns=wanted,
            endpoint=endpoint,
            **options,
        )
        return _check_whole(what, Fetched(Path(folder), name, str(found.sha)), wanted)
    except UserError:
        raise
    except Exception as error:
        # Each version raises errors of other classes; none of them tells the user what to do.
        if (problem := _refusal(what, kind, error)) is not None:
            raise UserError(problem) from error
        return _from_cache(what, name, revision, choose, options, error)


def _from_cache(
    what: str,
    name: str,
    revision: str | None,
    choose: Choose,
    options: dict[str, Any],
    error: Exception,
) -> Fetched:
    """Returns the files of the cache; raises UserError where they are not all there."""
    import huggingface_hub

    why = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    try:
        path = huggingface_hub.snapshot_download(
            name, revision=revision, local_files_only=True, **options
        )
    except Exception:
        raise UserError(
            f"{what}: there is no such folder, the Hub cannot be reached, and it is not in the "
            f"cache: connect once, or give a folder with its files ({why})"
        ) from error
    folder = Path(path)
    there = [
        file.relative_to(folder).as_posix()
        for file in sorted(folder.rglob("*"))
        if file.is_file()  # the link of a half download leads nowhere
    ]
    try:
        wanted = choose(there)
    except UserError as lacks:
        raise UserError(
            f"{what}: the Hub cannot be reached, and only a part of it was downloaded: run "
            f"again with a connection ({lacks})"
        ) from error
    return _check_whole(what, Fetched(folder, name, folder.name), wanted)


def _check_whole(what: str, found: Fetched, wanted: Sequence[str]) -> Fetched:
    missing = [name for name in wanted if not (found.folder / name).is_file()]
    if missing:
        raise UserError(
            f"{what}: only a part of it was downloaded, {missing[:3]} are missing: run again "
            "with a connection"
        )
    return found


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
