"""Removes metadata from image files, so that broken metadata cost no good pixels.

EXIF, XMP, colour profiles, comments and texts are not needed to decode pixels, but
Pillow refuses the whole file for some mistakes in them.
"""

import struct
from collections.abc import Callable, Iterator

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_WEBP_PIXELS = (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF")
_WEBP_METADATA_FLAGS = 0b101100  # colour profile, EXIF, XMP
_JPEG_SCAN = 0xDA
_JPEG_METADATA = (*range(0xE0, 0xEE), 0xEF, 0xFE)  # APP0 to APP13, APP15, comment
_JPEG_ADOBE, _JPEG_ADOBE_SIZE = 0xEE, 14  # says how colours are coded
# Tags of TIFF that pixels depend on: sizes, strips, tiles, compression, palette, JPEG.
_TIFF_PIXELS = frozenset(
    (*range(254, 260), 262, 266, 273, 274, 277, 278, 279, 284, 317, 320)
) | {*range(322, 326), 338, 339, 347, *range(530, 533)}


def strip(data: bytes) -> bytes:
    """Returns the file without metadata, or `data` itself for a format not in _FORMATS.

    A file that is damaged elsewhere stays damaged. Raises struct.error where it ends too
    early for its own sizes.
    """
    for signature, at, without in _FORMATS:
        if data[at : at + len(signature)] == signature:
            return without(data)
    return data


def _png(data: bytes) -> bytes:
    def chunks() -> Iterator[bytes]:
        at = len(_PNG)
        while at < len(data):
            size, kind = struct.unpack_from(">I4s", data, at)
            if kind in _PNG_PIXELS:
                yield data[at : at + 12 + size]
            at += 12 + size

    return _PNG + b"".join(chunks())


def _webp(data: bytes) -> bytes:
    def chunks() -> Iterator[bytes]:
        at = 12
        while at < len(data):
            kind, size = struct.unpack_from("<4sI", data, at)
            end = at + 8 + size + size % 2
            chunk = bytearray(data[at:end])
            if kind == b"VP8X":
                chunk[8] &= ~_WEBP_METADATA_FLAGS
            if kind in _WEBP_PIXELS:
                yield bytes(chunk)
            at = end

    body = b"WEBP" + b"".join(chunks())
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _jpeg(data: bytes) -> bytes:
    kept, at = [data[:2]], 2
    while data[at + 1] != _JPEG_SCAN:
        _, marker, size = struct.unpack_from(">BBH", data, at)
        wrong = marker == _JPEG_ADOBE and size != _JPEG_ADOBE_SIZE
        if marker not in _JPEG_METADATA and not wrong:
            kept.append(data[at : at + 2 + size])
        at += 2 + size
    return b"".join([*kept, data[at:]])


def _tiff(data: bytes) -> bytes:
    """Returns the first image alone, with the tags that its pixels depend on."""
    order = "<" if data[:1] == b"I" else ">"
    (first,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, first)
    entries = [
        data[at : at + 12] for at in range(first + 2, first + 2 + 12 * count, 12)
    ]
    kept = [
        entry
        for entry in entries
        if struct.unpack_from(f"{order}H", entry)[0] in _TIFF_PIXELS
    ]
    table = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + bytes(4)
    return data[:first] + table + data[first + len(table) :]


# (signature of a format, its position in the file, function that removes metadata)
_FORMATS: tuple[tuple[bytes, int, Callable[[bytes], bytes]], ...] = (
    (_PNG, 0, _png),
    (b"WEBP", 8, _webp),
    (b"\xff\xd8\xff", 0, _jpeg),
    (b"II*\0", 0, _tiff),
    (b"MM\0*", 0, _tiff),
)
