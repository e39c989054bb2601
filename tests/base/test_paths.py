"""`~` is expanded by one function, and nowhere else."""

from pathlib import Path

import pytest

import flax_adapt
from flax_adapt.base import paths
from flax_adapt.base.errors import UserError

PACKAGE = Path(flax_adapt.__file__).parent


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("~", "{home}"),
        ("~/a/b", "{home}/a/b"),
        ("./~/a", "~/a"),
        ("a/~", "a/~"),
        ("a~", "a~"),
        ("/a/b", "/a/b"),
        (Path("~/a"), "{home}/a"),
    ],
)
def test_a_leading_tilde_is_the_home_directory(monkeypatch, tmp_path, text, path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.user_path(text) == Path(path.format(home=tmp_path))


def test_nobodys_home_directory_is_a_mistake():
    with pytest.raises(UserError, match="~no_such_user is nobody's home directory"):
        paths.user_path("~no_such_user/a")


def test_addresses_of_remote_storage_stay_as_they_are():
    assert paths.expand_user("gs://bucket/a") == "gs://bucket/a"


@pytest.mark.parametrize(
    "text", ["gs://bucket/a", "s3://b", "file:///a", Path("gs://bucket/a")]
)
def test_an_address_is_no_local_folder_to_write_to(text):
    with pytest.raises(UserError, match="only folders and files of this machine"):
        paths.local_path(text)


def test_the_place_of_an_address_is_known_without_reading_it():
    for text in ("gs://bucket/a", "gs://bucket/a/", Path("gs://bucket/a")):
        assert paths.locate(text) == "gs://bucket/a"
    assert paths.locate("tar/{0..1}") == str(Path.cwd() / "tar/{0..1}")


@pytest.mark.parametrize("text", ["a:b", "C:/a", "a/gs:/b", "./gs://bucket"])
def test_a_colon_in_a_path_is_no_address(text):
    assert paths.user_path(text) == Path(text)


def test_no_other_module_expands_it():
    found = [p.name for p in PACKAGE.rglob("*.py") if "expanduser" in p.read_text()]
    assert found == ["paths.py"]
