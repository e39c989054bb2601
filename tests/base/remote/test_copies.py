"""Copies of remote objects are whole, up to date and never older than the object."""

import logging
import threading
from pathlib import Path

import pytest
from support import storages

from flax_adapt.base.errors import UserError
from flax_adapt.base.paths import user_path, user_pattern
from flax_adapt.base.remote import addresses, copies, store


def read(folder):
    return {name: (folder / name).read_text() for name in copies.list_files(folder)}


def ours(caplog):
    named = [one for one in caplog.records if one.name.startswith("flax_adapt")]
    return [one.getMessage() for one in named]


def fetch(address):
    copies.forget()
    return user_path(address)


def test_a_folder_is_copied_as_it_is_and_again_when_it_changes(
    storage, tmp_path, caplog
):
    source = storages.write(tmp_path / "s", a="1", b__c="22", b__e="")
    address = storages.put(source, f"{storage}/set")
    assert read(fetch(address)) == read(source) == {"a": "1", "b/c": "22", "b/e": ""}
    assert read(fetch(f"{address}/b")) == {"c": "22", "e": ""}
    assert fetch(f"{address}/a").read_text() == "1"
    caplog.clear()  # an earlier test may have set the level
    with caplog.at_level(logging.INFO, "flax_adapt"):
        assert read(fetch(address)) == read(source)
    assert not ours(caplog)  # nothing was fetched twice
    of_same_size = storages.write(tmp_path / "t", a="9", b__d="4")
    storages.put(of_same_size, address)
    store.delete(addresses.parse(address), ["b/c", "b/e"])
    assert read(fetch(address)) == {"a": "9", "b/d": "4"}


def test_a_pattern_finds_objects(storage, tmp_path):
    address = storages.put(
        storages.write(tmp_path / "s", a_1="1", a_2="2", b_1="3"), storage
    )
    found = user_pattern(f"{address}/a_*")
    assert sorted(Path(path).read_text() for path in found) == ["1", "2"]
    assert user_pattern(f"{address}/c_*") == []


def test_what_is_not_there_is_one_line_and_leaves_nothing(storage, tmp_path):
    with pytest.raises(UserError, match="there is no such object or folder") as caught:
        user_path(f"{storage}/none")
    assert str(caught.value).startswith(f"{storage}/none: ")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("kind", ["gs", "s3"])
def test_a_missing_bucket_is_one_line_and_leaves_nothing(kind, monkeypatch, tmp_path):
    storages.start(kind, monkeypatch, tmp_path)
    with pytest.raises(UserError, match="no such object, folder or bucket") as caught:
        user_path(f"{kind}://nobody-has-this/a")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("kind", ["gs", "s3"])
def test_without_its_package_a_scheme_names_the_extra(kind, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"pip install 'flax-adapt\[{kind}\]'"):
        copies.fetch.__wrapped__(addresses.parse(f"{kind}://bucket/a"))


@pytest.mark.parametrize("address", ["az://b/x", "http://b/x", "gss://b/x"])
def test_another_scheme_is_one_line_that_lists_ours(address):
    with pytest.raises(UserError, match="addresses here are gs://, s3://, file://"):
        user_path(address)


@pytest.mark.parametrize("address", ["gs://", "s3:///", "gs://b/../c", "file:///"])
def test_an_address_needs_a_bucket_and_stays_in_it(address):
    with pytest.raises(UserError, match=r"an address is .*://BUCKET/NAME, without"):
        user_path(address)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError("Forbidden: b/bucket/o"), "may not do this; log in"),
        (OSError("HTTP 403, denied"), "may not do this; log in"),
        (RuntimeError("Unable to locate credentials"), "may not do this; log in"),
        (ConnectionError("refused\nby peer"), "cannot be reached; try again"),
        (FileNotFoundError("b/nobody/o"), "no such object, folder or bucket"),
    ],
)
def test_errors_of_the_storage_are_one_line(
    file_storage, tmp_path, monkeypatch, error, said
):
    address = storages.put(storages.write(tmp_path / "s", a="1"), file_storage)
    storage = store.open_storage(addresses.parse(address))

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(type(storage), "find", fail)
    with pytest.raises(UserError, match=said) as caught:
        user_path(address)
    assert str(caught.value).startswith(f"{address}: ")
    assert "\n" not in str(caught.value)


def test_a_copy_that_breaks_off_leaves_the_files_that_are_whole(
    file_storage, tmp_path, monkeypatch
):
    address = storages.put(
        storages.write(tmp_path / "s", a="old", b="old"), file_storage
    )
    folder = fetch(address)
    storages.put(storages.write(tmp_path / "s", a="newer", b="newer"), address)
    storage = store.open_storage(addresses.parse(address))
    whole = type(storage).get

    def half(self, remote, local, **_):
        whole(self, remote[:1], local[:1])
        Path(local[1]).write_text("new")
        raise ConnectionError("reset")

    with monkeypatch.context() as broken:
        broken.setattr(type(storage), "get", half)
        with pytest.raises(UserError, match="cannot be reached"):
            fetch(address)
    assert read(folder) == {"a": "old", "b": "old"}
    assert not [*(copies.root() / "parts").iterdir()]
    assert read(fetch(address)) == {"a": "newer", "b": "newer"}


def test_processes_of_a_host_fetch_once(file_storage, tmp_path, caplog):
    address = storages.put(storages.write(tmp_path / "s", a="1", b="2"), file_storage)
    once, where = copies.fetch.__wrapped__, (addresses.parse(address),)
    with caplog.at_level(logging.INFO, "flax_adapt"):
        threads = [threading.Thread(target=once, args=where) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert ours(caplog) == [f"{address}: fetching 2 files, 2e-06 MB"]


@pytest.mark.parametrize("address", ["gs://b/a/c", "s3://b/a", "file:///a/b"])
def test_messages_name_the_address_and_not_its_copy(address):
    found = addresses.parse(address)
    assert str(found) == address
    for folder in (copies.root(), copies.root().parent / "workdirs" / "12"):
        copy = found.copy_in(folder)
        assert addresses.restore(f"x: {copy}/y is bad") == f"x: {address}/y is bad"
    assert addresses.restore("/a/gs/b is bad") == "/a/gs/b is bad"
