"""What a model folder may replace."""

import pytest

from flax_adapt.base.errors import UserError
from flax_adapt.weights.files import writing


def write(folder):
    writing.write_folder(folder, lambda fresh: None, {"config.json": {}}, [])


def test_a_folder_with_our_card_and_temperature_is_replaced_one_with_a_users_is_not(
    tmp_path,
):
    folder = tmp_path / "export"
    write(folder)
    (folder / writing.CALIBRATION).write_text("{}")
    card, ours = folder / writing.CARD, f"---\n{writing.CARD_TAG}distill]\n---\n"
    card.write_text(ours)
    write(folder)
    assert [file.name for file in folder.iterdir()] == ["config.json"]
    card.write_text("# My model\n")
    with pytest.raises(UserError, match=r"holds README\.md, which no export wrote"):
        write(folder)
    assert card.read_text() == "# My model\n"
