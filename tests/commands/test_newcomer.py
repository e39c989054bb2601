"""A newcomer's mistakes: each is one line that says what was wrong and what to do."""

import re

import pytest
from support import newcomer


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return newcomer.write_files(tmp_path_factory.mktemp("newcomer"))


def test_there_are_forty_mistakes():
    assert len(newcomer.MISTAKES) >= 40


@pytest.mark.parametrize("name", newcomer.MISTAKES)
def test_a_mistake_is_one_line_with_exit_code_2(name, files, main, tmp_path):
    line, said = newcomer.MISTAKES[name]
    code, _, error = main(*line.format(**{**files, "new": tmp_path / "new"}).split())
    lines = error.splitlines()
    assert code == 2
    assert re.search(said, lines[-1]), lines[-1]
    assert lines[-1].startswith("flax-adapt: ")
    assert not any("Traceback" in one for one in lines)
