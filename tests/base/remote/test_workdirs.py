"""A workdir on remote storage: what a command leaves there, and what the next one finds."""

import os

import pytest
from support import storages

from flax_adapt.base.errors import UserError
from flax_adapt.base.remote import addresses, store, workdirs
from flax_adapt.experiment import lock

STEP = "stages/a/checkpoints/2"
WHOLE = f"{STEP}/_CHECKPOINT_METADATA"


@pytest.fixture
def address(storage):
    return f"{storage}/run"


@pytest.fixture
def of_files(file_storage):
    return f"{file_storage}/run"


def opened(address, is_writer=True, reads_checkpoints=True):
    return workdirs.open_address(
        addresses.parse(address),
        is_writer=is_writer,
        reads_checkpoints=reads_checkpoints,
    )


def test_what_a_command_writes_the_next_one_finds_on_any_machine(address):
    with opened(address) as folder:
        assert folder.name == "run"
        storages.write(folder, a="1", stages__x__result="22")
        workdirs.push()
        with (folder / "a").open("a") as file:
            file.write("2")
    assert storages.get(address) == {"a": b"12", "stages/x/result": b"22"}
    with opened(address) as folder:
        assert (folder / "a").read_text() == "12"
        before = {path: path.stat().st_ino for path in folder.rglob("*")}
    with opened(address) as folder:  # nothing is fetched twice
        assert {path: path.stat().st_ino for path in folder.rglob("*")} == before
    storages.delete_copies()
    with opened(address) as folder:
        assert (folder / "stages" / "x" / "result").read_text() == "22"


def test_what_broke_off_is_as_it_was_stored(of_files):
    def break_off():
        with opened(of_files) as folder:
            storages.write(folder, a="1")
            raise UserError("no")

    with pytest.raises(UserError, match="no"):
        break_off()
    assert storages.get(of_files) == {"a": b"1"}  # as in a folder
    with opened(of_files) as folder:
        storages.write(folder, a="2", b="2")
        workdirs._open[0].is_writer = False  # as killed: nothing more is written
    with opened(of_files) as folder:
        assert (folder / "a").read_text() == "1"
        assert not (folder / "b").exists()


def test_files_that_mark_others_as_complete_are_written_last(of_files, monkeypatch):
    waves, upload = [], store.upload
    monkeypatch.setattr(
        store,
        "upload",
        lambda at, folder, names: waves.append(names) or upload(at, folder, names),
    )
    with opened(of_files) as folder:
        storages.write(
            folder,
            stages__a__result="",
            stages__a__export__model="",
            **{"stages__a__export__config.json": "", "stages__a__result.json": ""},
        )
    assert waves == [
        ["stages/a/export/model", "stages/a/result"],
        ["stages/a/export/config.json"],
        ["stages/a/result.json"],
    ]


def test_locks_and_what_is_still_being_written_stay_here(of_files):
    with opened(of_files) as folder:
        storages.write(folder, a="1")
        for name in (
            "lock.json",
            ".a.part",
            "x/.export-1/b",
            "timing/c",
            f"{STEP}.orbax-checkpoint-tmp/d",
        ):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("")
    assert [*storages.get(of_files)] == ["a"]


def test_a_checkpoint_is_read_whole_or_not_at_all(of_files):
    """Orbax marks a checkpoint as whole; a push that was killed wrote the mark last."""
    at = addresses.parse(of_files)
    with opened(of_files) as folder:
        storages.write(folder, **{f"{STEP.replace('/', '__')}__d": "1"})
    with opened(of_files) as folder:
        assert not (folder / STEP).exists()
        storages.write(
            folder,
            **{f"{STEP.replace('/', '__')}__d": "1", WHOLE.replace("/", "__"): ""},
        )
    with opened(of_files) as folder:
        assert (folder / STEP / "d").read_text() == "1"
        os.remove(folder / STEP / "d")
        os.remove(folder / WHOLE)
    assert not store.list_objects(at)


def test_who_reads_no_checkpoint_knows_that_there_is_one(of_files):
    with opened(of_files) as folder:
        storages.write(
            folder,
            **{WHOLE.replace("/", "__"): "", f"{STEP.replace('/', '__')}__d": "1"},
        )
    storages.delete_copies()
    with opened(of_files, reads_checkpoints=False) as folder:
        assert (folder / STEP).is_dir()
        assert not [*(folder / STEP).iterdir()]
    assert len(storages.get(of_files)) == 2


def test_other_files_are_not_deleted_where_the_copy_has_lost_them(of_files):
    with opened(of_files) as folder:
        storages.write(folder, a="1", stages__a__export__old="1")
    with opened(of_files) as folder:
        (folder / "a").unlink()
        (folder / "stages/a/export/old").unlink()
        storages.write(folder, stages__a__export__new="2")
    assert [*storages.get(of_files)] == ["a", "stages/a/export/new"]


def test_other_processes_read_what_process_0_wrote(of_files):
    with opened(of_files) as first, opened(of_files, is_writer=False) as other:
        assert first != other  # each has a copy of its own
        storages.write(first, a="1")
        storages.write(other, b="1")
        workdirs.push()
        assert not (other / "a").exists()
        workdirs.pull()
        assert (other / "a").read_text() == "1"
        assert (other / "b").exists()  # what it has written itself stays
    assert [*storages.get(of_files)] == ["a"]


def test_one_run_at_a_time_on_one_machine(of_files):
    with (
        opened(of_files) as first,
        lock.hold(first),
        opened(of_files) as second,
        pytest.raises(UserError, match="is in use by"),
        lock.hold(second),
    ):
        pass
    with opened(of_files) as third, lock.hold(third):
        assert third == first


def test_a_workdir_that_is_a_file_is_one_line(of_files, tmp_path):
    (tmp_path / "x").write_text("")
    storages.put(tmp_path / "x", of_files)
    with pytest.raises(UserError, match="is a file: give a folder"), opened(of_files):
        pass


@pytest.mark.parametrize("kind", ["gs", "s3"])
def test_a_bucket_that_is_missing_is_one_line_and_leaves_nothing(
    kind, monkeypatch, tmp_path
):
    storages.start(kind, monkeypatch, tmp_path)
    missing = pytest.raises(UserError, match="no such object, folder or bucket")
    with missing, opened(f"{kind}://nobody-has-this/run"):
        pass
    left = [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert all(name.endswith("-0") for name in left)  # an empty lock
    assert not [*(tmp_path / "cache").rglob("run")]


def test_a_storage_that_cannot_be_written_is_said_before_anything_is_trained(
    of_files, monkeypatch, tmp_path
):
    def refuse(*_):
        raise UserError("may not do this")

    def run():
        with opened(of_files) as folder:
            storages.write(folder, a="1")
            workdirs.push()

    monkeypatch.setattr(store, "upload", refuse)
    with pytest.raises(UserError, match="may not do this"):
        run()
    assert not [*tmp_path.rglob("run")]
