"""Hostile files made by hand: pickles that run something, headers that lie."""

import json
import os
import struct


class Attack:
    """Pickles as a call that makes the file `marker`."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def write_header(path, header, data=bytes(8), size=None):
    """`header`: an object, or the text itself; size: what the file says of its length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if size is None else size
    path.write_bytes(struct.pack("<Q", size) + text + data)
    return path


def npy(descr="'<f4'", shape="(2,)", fortran="False", version=1, data=bytes(8)):
    text = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n"
    size = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + size + text.encode() + data
