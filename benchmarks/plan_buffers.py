"""plan.py's compiler that stops once buffers are assigned: before code is generated.

The program and its memory are final by then; what is missing is the size of the code. Most
of the seconds of compiling come after.
"""

import re
import threading
import time
from types import SimpleNamespace

from flax_adapt.plan import plans

_SIZE = re.compile(r"^allocation \d+: size (\d+), (.*)$", re.MULTILINE)


def compiler(folder):
    """A `plans.Compiler` for a process in which XLA writes `jit_update` to a folder.

    The compilation itself goes on, in a thread that only the end of the process stops.
    """

    def compile_until_buffers(lowered, platform):
        found = []
        thread = threading.Thread(
            target=lambda: found.append(_compile(lowered, platform)), daemon=True
        )
        thread.start()
        while not found:
            # Written after the two files that are read.
            if list(folder.glob("*jit_update*after_buffer_assignment.txt")):
                return _Program(folder), 0
            time.sleep(0.1)
        if isinstance(found[0], Exception):
            raise found[0]
        return found[0]

    return compile_until_buffers


def _compile(lowered, platform):
    try:
        return plans.compile_step(lowered, platform)
    except Exception as error:  # of the other thread
        return error


class _Program:
    """What `plans` reads of a compiled program."""

    def __init__(self, folder):
        self.folder = folder

    def _read(self, end):
        (path,) = self.folder.glob(f"*jit_update*{end}")
        return path.read_text("utf-8")

    def as_text(self):
        """The optimized program."""
        return self._read("after_optimizations.txt")

    def memory_analysis(self):
        """Bytes of the main memory by their purpose; results that reuse arguments are none."""
        sizes = dict(arguments=0, temporaries=0, outputs=0)
        for size, what in _SIZE.findall(self._read("-buffer-assignment.txt")):
            if not re.search(r"color [1-9]", what):
                sizes[_purpose(what)] += int(size)
        return SimpleNamespace(
            argument_size_in_bytes=sizes["arguments"],
            temp_size_in_bytes=sizes["temporaries"],
            output_size_in_bytes=sizes["outputs"],
            alias_size_in_bytes=0,
            generated_code_size_in_bytes=0,
        )


def _purpose(what):
    if "parameter" in what:
        return "arguments"
    return "outputs" if "maybe-live-out" in what else "temporaries"
