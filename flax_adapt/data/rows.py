"""Reads rows of text files: (line, fields), or (line, reason why it cannot be read).

Lines end in LF or CR LF, or in a file without LF in CR. A UTF-8 byte order mark is
dropped, and blank lines are no rows. Raises UserError for the byte order mark of another
encoding.
"""

import codecs
import contextlib
import csv
import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, TypeAlias

from flax_adapt.base import errors

# Named fields, or the reason why there are none.
Fields: TypeAlias = Mapping[str, Any] | str
Rows: TypeAlias = Iterator[tuple[int, Fields]]
NOT_UTF8 = "not UTF-8"
_BOMS_OF_OTHERS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)


def read_jsonl(path: pathlib.Path) -> Rows:
    """Yields the JSON object of each line."""
    for number, line in _lines(path):
        yield number, NOT_UTF8 if line is None else _object(line)


def _object(line: str) -> Fields:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"not JSON ({error})"
    return fields if isinstance(fields, dict) else "not a JSON object"


def read_tsv(path: pathlib.Path) -> Rows:
    """Yields rows of a header and fields between tabs, without quotes, as in GLUE."""
    header = None
    for number, line in _lines(path):
        if line is None:
            yield number, NOT_UTF8
        elif header is None:
            header = line.split("\t")
        else:
            yield number, _name_fields(header, line.split("\t"))


def read_text(path: pathlib.Path) -> Rows:
    """Yields one document a line, as the field "text"."""
    for number, line in _lines(path):
        yield number, NOT_UTF8 if line is None else {"text": line}


def read_csv(path: pathlib.Path) -> Rows:
    """Yields rows of a header and fields between commas; quotes may hold commas and lines."""
    # Bytes that are no UTF-8 become surrogates, so that only their own row is broken.
    escape = "surrogateescape"
    _check_encoding(path)
    with (
        _long_fields(),
        open(path, encoding="utf-8-sig", errors=escape, newline="") as file,
    ):
        reader = csv.reader(file, strict=True)
        header = None
        for number, row in _csv_records(reader, path):
            if row == []:
                continue
            if isinstance(row, list) and not _is_utf8(row):
                row = NOT_UTF8
            if isinstance(row, list) and header is None:
                header = row
            else:
                yield number, row if isinstance(row, str) else _name_fields(header, row)


def _csv_records(
    reader: Any, path: pathlib.Path
) -> Iterator[tuple[int, list[str] | str]]:
    """Yields (first line, values) of every record, or (first line, its error)."""
    while True:
        number = reader.line_num + 1
        try:
            yield number, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                # Everything from here on was swallowed as one field.
                raise errors.UserError(
                    f"data.source: {path}:{number}: a quote is opened in this row"
                    " and never closed; double the quotes inside of quoted fields"
                ) from error
            yield number, str(error)


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
    """Allows documents longer than the 128 KiB of the csv module."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _is_utf8(values: list[str]) -> bool:
    try:
        "".join(values).encode()
    except UnicodeEncodeError:
        return False
    return True


def _name_fields(header: list[str] | None, values: list[str]) -> Fields:
    if header is not None and len(set(header)) < len(header):
        raise errors.UserError(
            f"data.source: a column is named twice in the header {header}; rename one"
        )
    if header is None or len(header) != len(values):
        return f"{len(values)} fields where the header has {len(header or ())}"
    return dict(zip(header, values, strict=True))


def _lines(path: pathlib.Path) -> Iterator[tuple[int, str | None]]:
    """Yields (number, line) for lines that are not blank; None for one that is not UTF-8.

    Only LF ends a line. JSON strings and documents may contain the other characters at
    which `str.splitlines` would split.
    """
    _check_encoding(path)
    with open(path, "rb") as file:
        for number, line in enumerate(_ended_lines(file), 1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                text = line.decode().rstrip("\r\n")
            except UnicodeDecodeError:
                yield number, None
                continue
            if text.strip():
                yield number, text


def _ended_lines(file: BinaryIO) -> Iterator[bytes]:
    """Yields lines that end in LF; in CR for a file with no LF except at its end."""
    first, second = file.readline(), file.readline()
    yield from (first,) if second else first.split(b"\r")
    yield from (second,) if second else ()
    yield from file


def _check_encoding(path: pathlib.Path) -> None:
    with open(path, "rb") as file:
        if file.read(4).startswith(_BOMS_OF_OTHERS):
            raise errors.UserError(
                f"data.source: {path} is UTF-16 or UTF-32; save it as UTF-8"
            )


READERS: dict[str, Callable[[pathlib.Path], Rows]] = {
    "jsonl": read_jsonl,
    "csv": read_csv,
    "tsv": read_tsv,
}
