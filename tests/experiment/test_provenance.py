"""commands.jsonl: a line for each start of a run."""

import flax_adapt
from flax_adapt.experiment import provenance


def test_each_start_is_a_line_and_a_torn_one_is_left_out(tmp_path):
    assert provenance.read_starts(tmp_path) == []
    for _ in range(2):
        provenance.note_start(tmp_path)
    with (tmp_path / provenance.FILE).open("a") as file:
        file.write('{"command": "x')
    first, second = provenance.read_starts(tmp_path)
    assert first["command"] == second["command"]
    assert first["versions"]["flax_adapt"] == flax_adapt.__version__
    assert {"python", "jax", "numpy"} <= {*first["versions"]}


def test_a_command_is_quoted_as_it_is_typed():
    words = ["/usr/bin/flax-adapt", "run", "--workdir=a b"]
    assert provenance.describe_command(words) == "flax-adapt run '--workdir=a b'"
    words[0] = "/x/flax_adapt/__main__.py"
    found = provenance.describe_command(words)
    assert found == "python -m flax_adapt run '--workdir=a b'"
