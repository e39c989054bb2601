"""The launcher commands in the documentation are accepted."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def commands_of_docs():
    """The launcher commands in the documentation; a backslash continues a line."""
    for page in sorted((ROOT / "docs" / "hardware").glob("*.md")):
        text = re.sub(r"\\\n\s*", "", page.read_text("utf-8"))
        yield from re.findall(
            r"^(?:bash|sbatch|python) .*?(launch/.+)$", text, re.MULTILINE
        )


@pytest.mark.parametrize("line", [*commands_of_docs()])
def test_a_command_of_the_documentation_is_accepted(line):
    script, *arguments = shlex.split(line)
    arguments = ["--dry-run", *(word for word in arguments if word != "--dry-run")]
    program = sys.executable if script.endswith(".py") else "bash"
    done = subprocess.run(
        [program, ROOT / script, *arguments], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
