"""A damaged prepared data set is one line: without TFDS's builders, whose files are faked."""

import pytest

from flax_adapt.base import errors
from flax_adapt.data import prepared


class Broken:
    """As array_record's reader of a damaged file."""

    def __len__(self):
        raise RuntimeError("Corrupted\nfile")

    def __getitem__(self, i):
        raise RuntimeError("Corrupted\nfile")


def test_damaged_records_are_one_line_that_names_the_folder():
    records = prepared.Records(Broken(), "here")
    for read in (lambda: len(records), lambda: records[0]):
        with pytest.raises(errors.UserError) as caught:
            read()
        assert str(caught.value) == (
            "data.source: the data set in here is damaged; prepare it again (Corrupted "
            "file)"
        )


@pytest.mark.parametrize("contents", ["", "{", "[]", "{}"])
def test_a_damaged_description_is_one_line(tmp_path, contents):
    from ml_collections import ConfigDict

    folder = tmp_path / "shades" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / prepared.INFO).write_text(contents)
    config = ConfigDict(dict(split="train", data_dir=str(tmp_path)))
    with pytest.raises(
        errors.UserError, match=r"shades.* is damaged; prepare it again"
    ):
        prepared.open_prepared("shades", config)
