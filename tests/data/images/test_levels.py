"""Levels of 10 to 16 bits, floats and DICOM become the same 8 bits as in a plain image."""

import io

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from support import tiny

from flax_adapt import data
from flax_adapt.base import errors
from flax_adapt.data import examples
from flax_adapt.data.images import image, levels
from flax_adapt.data.images.levels import How

SHADES = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
TWELVE = np.rint(SHADES * (4095 / 255)).astype(np.uint16)
BITS_12, UNIT = How("squash", (0, 4095), False), How("squash", (0, 1), False)


def encode(pixels, form):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def npy(pixels):
    file = io.BytesIO()
    np.save(file, pixels)
    return file.getvalue()


def dicom(pixels, window=None, **tags):
    """A DICOM file of 12 bits in 16; window: its centre and width."""
    pydicom = pytest.importorskip("pydicom")
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    made = pydicom.dataset.FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    made.Rows, made.Columns = pixels.shape
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit = 16, 12, 11
    made.PixelRepresentation = 0
    if window:
        made.WindowCenter, made.WindowWidth = window
    for name, value in tags.items():
        setattr(made, name, value)
    made.PixelData = pixels.astype(np.uint16).tobytes()
    file = io.BytesIO()
    made.save_as(file, enforce_file_format=True)
    return file.getvalue()


@pytest.mark.parametrize(
    ("item", "how"),
    [
        (encode(TWELVE, "PNG"), BITS_12),
        (encode(TWELVE, "TIFF"), BITS_12),
        (npy(TWELVE), BITS_12),
        (TWELVE, BITS_12),
        (npy(SHADES), image.PLAIN),
        (npy(SHADES.astype(np.uint16) * 257), image.PLAIN),
        (npy(SHADES / 255), UNIT),
        (encode((SHADES / 255).astype(np.float32), "TIFF"), UNIT),
        (npy(SHADES[..., None]), image.PLAIN),
    ],
)
def test_the_same_picture_in_any_levels_decodes_alike(item, how):
    np.testing.assert_array_equal(image.decode(item, 8, 1, how)[..., 0], SHADES)
    colour = image.decode(item, 8, 3, how)
    np.testing.assert_array_equal(colour, np.stack([SHADES] * 3, axis=-1))


def test_dicom_is_shown_by_its_own_window_or_by_ours():
    window = (2048.0, 4096.0)  # 0 to 4095, by the standard's formula
    for item in (dicom(TWELVE), dicom(TWELVE, window)):
        np.testing.assert_array_equal(image.decode(item, 8, 1)[..., 0], SHADES)
        assert image.read_levels(item) is None  # its range is certain
    narrow = image.decode(dicom(TWELVE, (600.5, 1001.0)), 8, 1)[..., 0]
    expected = np.rint(np.clip((TWELVE - 100.0) * 255 / 1000, 0, 255))
    np.testing.assert_array_equal(narrow, expected)
    ours = image.decode(dicom(TWELVE, (600.5, 1001.0)), 8, 1, BITS_12)
    np.testing.assert_array_equal(ours[..., 0], SHADES)
    moved = dicom(TWELVE, (1024.0, 4096.0), RescaleSlope=1, RescaleIntercept=-1024)
    np.testing.assert_array_equal(image.decode(moved, 8, 1)[..., 0], SHADES)
    inverted = dicom(TWELVE, window, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(image.decode(inverted, 8, 1)[..., 0], 255 - SHADES)


@pytest.mark.parametrize("form", ["npy", "tiff"])
def test_any_number_of_channels_is_read(form):
    planes = np.stack([SHADES, 255 - SHADES, SHADES.T, SHADES // 2, SHADES], axis=-1)
    if form == "tiff":
        tifffile = pytest.importorskip("tifffile")
        file = io.BytesIO()
        tifffile.imwrite(file, planes, photometric="minisblack", planarconfig="contig")
        item = file.getvalue()
    else:
        item = npy(planes)
    np.testing.assert_array_equal(image.decode(item, 8, 5), planes)
    np.testing.assert_array_equal(
        image.decode(npy(np.moveaxis(planes, -1, 0)), 8, 5), planes
    )
    half = image.decode(item, 4, 5)
    np.testing.assert_array_equal(half[..., 0], image.decode(SHADES, 4, 1)[..., 0])
    with pytest.raises(image.UndecodableImage, match="it has 5 channels, not 3"):
        image.decode(item, 8, 3)
    with pytest.raises(image.UndecodableImage, match="it has 1 channels, not 5"):
        image.decode(encode(SHADES, "PNG"), 8, 5)


def test_the_aspect_ratio_is_lost_cut_or_padded():
    wide = np.zeros((4, 8), np.uint8)
    wide[:, 2:6], wide[:, 6:] = 100, 200
    decode = {
        fit: image.decode(wide, 4, 1, How(fit, None, False))[..., 0]
        for fit in levels.FITS
    }
    assert {*decode["crop"].ravel().tolist()} == {100}  # the square in the middle
    assert decode["pad"][0].max() == decode["pad"][-1].max() == 0
    assert decode["pad"][1:3].max() > 100
    assert decode["squash"][0, -1] == decode["squash"][-1, -1] > 150
    for fit in levels.FITS:  # what is square is left as it is
        whole = image.decode(SHADES, 8, 1, How(fit, None, False))[..., 0]
        np.testing.assert_array_equal(whole, SHADES)


@pytest.mark.parametrize("form", ["WEBP", "AVIF"])
def test_formats_of_pillow_are_read_back(form):
    picture = Image.fromarray(np.stack([SHADES] * 3, axis=-1))
    file = io.BytesIO()
    picture.save(file, form, quality=100)
    decoded = image.decode(file.getvalue(), 8, 3).astype(int)
    assert np.abs(decoded - np.asarray(picture)).max() < 12


def test_heic_is_read_where_its_package_is_there(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    image.formats.cache_clear()
    heif.register_heif_opener()
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / "x.heic")
    assert abs(int(image.decode(tmp_path / "x.heic", 8, 3).mean()) - 90) < 4
    section = section_of(tmp_path, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert len(data.open_examples(section, "")) == 1


def section_of(folder, **changes):
    return ConfigDict({**tiny.digits(), "source": f"folder:{folder}", **changes})


def test_a_small_range_asks_for_one_and_takes_bits_window_or_percentiles(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(encode(TWELVE, "PNG"))
    with pytest.raises(
        errors.UserError, match=r"only 0 to 4047 of .* give data.bits=12"
    ):
        data.open_examples(section_of(tmp_path), "")
    for changes in (dict(bits=12), dict(window="0:4095")):
        opened = data.open_examples(section_of(tmp_path, **changes), "")
        (batch,) = data.eval_batches(opened, 3, 0, 1)
        np.testing.assert_array_equal(batch["image"][1, ..., 0], SHADES)
    whole = section_of(tmp_path, window="0%:100%")
    assert examples.window_of_percentiles(whole) == "0:4047"
    with pytest.raises(errors.UserError, match="8 bits or tell their range"):
        examples.window_of_percentiles(
            ConfigDict({**tiny.digits(), "window": "1%:99%"})
        )


@pytest.mark.parametrize("kind", ["float", "negative"])
def test_levels_without_a_known_range_ask_for_one(tmp_path, kind):
    pixels = SHADES / 255 if kind == "float" else SHADES.astype(np.int16) - 100
    np.save(tmp_path / "x.npy", pixels)
    with pytest.raises(errors.UserError, match=r"no known range: give data\.window"):
        data.open_examples(section_of(tmp_path), "")
    low, high = (0, 1) if kind == "float" else (-100, 155)
    opened = data.open_examples(section_of(tmp_path, window=f"{low}:{high}"), "")
    (batch,) = data.eval_batches(opened, 1, 0, 1)
    np.testing.assert_array_equal(batch["image"][0, ..., 0], SHADES)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (dict(fit="stretch"), "data.fit='stretch' is unknown; choose one of"),
        (dict(fit="squish"), "did you mean 'squash'"),
        (dict(bits=17), "data.bits=17 must be 1 to 16"),
        (dict(bits=12, window="0:9"), "are two ranges: give one"),
        (dict(window="9:0"), "data.window='9:0' must be LOW:HIGH"),
        (dict(window="dark"), "data.window='dark' must be LOW:HIGH"),
    ],
)
def test_a_setting_that_cannot_be_is_named(changes, told):
    with pytest.raises(errors.UserError) as caught:
        data.open_examples(ConfigDict({**tiny.digits(), **changes}), "")
    assert told in str(caught.value)
