"""Output of a run: metrics, TensorBoard events, JSON files, tables, a progress bar."""

import contextlib
import json
import logging
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, TypeAlias

from flax_adapt.base.errors import UserError

if TYPE_CHECKING:
    from tqdm import tqdm

PathLike: TypeAlias = str | os.PathLike[str]


@contextlib.contextmanager
def quieten(least: int) -> Iterator[None]:
    """Keeps what is logged below the level `least`, such as logging.WARNING, from the user.

    For runs that serve another one, which say the same once more.
    """
    logger = logging.getLogger("flax_adapt")
    level = logger.level
    logger.setLevel(least)
    try:
        yield
    finally:
        logger.setLevel(level)


class Writer(Protocol):
    """Takes the metrics of one stage."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class MetricWriter:
    """Writes one stage's metrics to `workdir/metrics.jsonl` and `workdir/events/STAGE`.

    A line is {"stage", "step", name: number, ...}. Opening repairs the file of a killed
    run: an incomplete last line is removed, and so are this stage's lines after `step`,
    the step that training resumes from (0: every line of the stage is removed).
    """

    def __init__(
        self,
        workdir: PathLike,
        stage: str,
        *,
        step: int,
        is_writer: bool,
        others: Sequence[Writer] = (),
    ):
        """`is_writer` is true on process 0 only; elsewhere every call does nothing.

        others: take the same metrics, and are closed with this. They raise nothing.
        """
        self._workdir, self._stage, self._others = Path(workdir), stage, others
        self._file, self._events = None, None
        if not is_writer:
            return
        path = Path(workdir) / "metrics.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_after(path, stage, step)
        self._file = path.open("a", encoding="utf-8")
        # TensorBoard hides what an earlier attempt wrote from `purge_step` on.
        events = Path(workdir) / "events" / stage
        self._events = _Events(events, purge_step=step + 1 if step else 0)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends one line and flushes it; raises OSError that names the files."""
        if self._file is None or self._events is None:
            return
        numbers = {name: float(value) for name, value in values.items()}
        line = {"stage": self._stage, "step": int(step), **numbers}
        with self._add_file_names():
            self._file.write(json.dumps(plain(line)) + "\n")
            self._file.flush()
            self._events.write(int(step), values)
        for other in self._others:
            other.write(int(step), numbers)

    def close(self) -> None:
        """Closes both files and the others."""
        with contextlib.ExitStack() as stack:
            for other in self._others:
                stack.callback(other.close)
            stack.enter_context(self._add_file_names())
            for opened in (self._file, self._events):
                if opened is not None:
                    stack.callback(opened.close)

    @contextlib.contextmanager
    def _add_file_names(self) -> Iterator[None]:
        """Adds the names of the files to an OSError, which may lack them."""
        try:
            yield
        except OSError as error:
            files = f"{self._workdir}/metrics.jsonl or {self._workdir}/events"
            raise OSError(error.errno, error.strerror, files) from error

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Events:
    """Writes scalars for TensorBoard in the calling thread.

    tensorboardX's own SummaryWriter writes in a thread, whose errors nobody can catch.
    """

    FLUSH_SECONDS = 10.0

    def __init__(self, folder: Path, purge_step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import scalar

        folder.mkdir(parents=True, exist_ok=True)
        self._event, self._scalar, self._flushed = Event, scalar, time.monotonic()
        self._file = EventsWriter(str(folder / "events"))
        begin = SessionLog(status=SessionLog.START)
        self._add(purge_step, session_log=begin)

    def _add(self, step: int, **what: Any) -> None:
        event = self._event(wall_time=time.time(), step=step, **what)
        self._file.write_event(event)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            self._add(step, summary=self._scalar(name, float(value)))
        if time.monotonic() > self._flushed + self.FLUSH_SECONDS:
            self._file.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        self._file.close()


def read_metrics(workdir: PathLike) -> list[dict[str, Any]]:
    """Returns every line of `workdir/metrics.jsonl` but an incomplete last one.

    [] if there is no file; raises UserError for a line that is not JSON of a step.
    """
    path = Path(workdir) / "metrics.jsonl"
    if not path.exists():
        return []
    *whole, _torn_or_empty = path.read_text("utf-8", errors="replace").split("\n")
    return [_parse(path, number, line) for number, line in enumerate(whole, start=1)]


def _parse(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
        if not (isinstance(found, dict) and {"stage", "step"} <= found.keys()):
            raise ValueError("it is no object with a stage and a step")
    except ValueError as error:
        raise UserError(
            f"{path}, line {number} is not JSON of a step ({error}): mend or delete that "
            "line"
        ) from None
    return found


def _drop_after(path: Path, stage: str, step: int) -> None:
    def stays(line: dict[str, Any]) -> bool:
        return line["stage"] != stage or (step > 0 and line["step"] <= step)

    lines = [json.dumps(line) for line in read_metrics(path.parent) if stays(line)]
    _replace(path, "".join(f"{line}\n" for line in lines))


def progress(
    num_steps: int, *, initial: int, description: str, enabled: bool
) -> "tqdm[Any]":
    """Returns a progress bar with the time left, shown only if `enabled` and on a terminal."""
    from tqdm import tqdm

    return tqdm(
        total=num_steps,
        initial=initial,
        desc=description,
        unit="step",
        dynamic_ncols=True,
        disable=not (enabled and sys.stderr.isatty()),
    )


def show(
    bar: "tqdm[Any]", step: int, *, loss: float, examples_per_second: float
) -> None:
    """Moves a bar of `progress` to `step` and shows the two numbers next to it."""
    bar.set_postfix_str(
        f"loss {loss:.4g}, {examples_per_second:.0f} examples/s", refresh=False
    )
    bar.update(step - bar.n)


def format_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Returns aligned plain text: numbers to the right, floats with four digits.

    The cell of a column that a row lacks is empty.
    """
    cells = [list(columns)]
    cells += [[_cell(row.get(name, "")) for name in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [_is_numeric(row.get(name, "") for row in rows) for name in columns]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join(_align(line, widths, right) for line in cells)


def _cell(value: Any) -> str:
    return f"{value:#.4g}" if isinstance(value, float) else str(value)


def _is_numeric(values: Iterable[Any]) -> bool:
    present = [value for value in values if value != ""]
    return bool(present) and all(isinstance(value, int | float) for value in present)


def _align(line: list[str], widths: list[int], right: list[bool]) -> str:
    parts = [
        text.rjust(width) if to_right else text.ljust(width)
        for text, width, to_right in zip(line, widths, right, strict=True)
    ]
    return "  ".join(parts).rstrip()


def write_json(path: PathLike, value: Any) -> None:
    """Writes `value` whole or not at all: a reader never sees half a file."""
    _replace(Path(path), json.dumps(plain(value), indent=2) + "\n")


def read_json(path: PathLike) -> Any:
    """Returns the content of a JSON file; raises UserError if it is not JSON."""
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except ValueError as error:  # no JSON, or not even UTF-8
        raise UserError(f"{path} is not JSON ({error}): mend or delete it") from None


def plain(value: Any) -> Any:
    """Returns `value` as JSON values; NaN and infinities, which JSON lacks, become null."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # arrays and scalars of NumPy and JAX
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _replace(path: Path, text: str) -> None:
    with replace_file(path) as file:
        file.write(text.encode("utf-8"))


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file that takes the place of `path` when it is written, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
