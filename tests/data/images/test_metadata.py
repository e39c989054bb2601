"""Good pixels are decoded whatever is wrong with the metadata beside them."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from flax_adapt.data.images import image, metadata

# Pillow may warn of what is broken here; the pixels are what counts.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

RNG = np.random.default_rng(0)
PIXELS = np.kron(RNG.integers(0, 256, (2, 3, 3)), np.ones((8, 8, 1))).astype(np.uint8)
PICTURE = Image.fromarray(PIXELS)
SIZE = 24
GARBAGE = b"\xff" * 30
TURNED = Image.Exif()
TURNED[0x0112] = 6
EXIF = TURNED.tobytes()


def encode(form, **options):
    file = io.BytesIO()
    PICTURE.save(file, form, **options)
    return file.getvalue()


def png(kind, body, crc=None):
    """A PNG with this chunk before its pixels."""
    crc = zlib.crc32(kind + body) if crc is None else crc
    whole = encode("PNG")
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)
    return whole[:33] + chunk + whole[33:]


def jpeg(marker, body):
    """A JPEG with this segment first."""
    whole = encode("JPEG")
    segment = struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body
    return whole[:2] + segment + whole[2:]


def tiff(tag, value, kind):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags.tagtype[tag] = kind
    tags[tag] = value
    return encode("TIFF", tiffinfo=tags)


def spoilt_tiff(**fields):
    """A TIFF whose description has another type, count or place than it says."""
    whole = bytearray(tiff(270, "a long description of an image", 2))
    entry = whole.find(struct.pack("<HH", 270, 2))
    for name, place in (("kind", "<2xH"), ("count", "<4xI"), ("offset", "<8xI")):
        if name in fields:
            size = struct.calcsize(place)
            start = entry + size - struct.calcsize(place[-1])
            struct.pack_into(f"<{place[-1]}", whole, start, fields[name])
    return bytes(whole)


def webp_with_flagged_garbage():
    """EXIF whose length goes beyond the file."""
    whole = encode("WEBP", lossless=True, exif=b"Exif\0\0" + GARBAGE)
    place = whole.find(b"EXIF") + 4
    return whole[:place] + struct.pack("<I", 10**6) + whole[place + 4 :]


BROKEN = {
    "png exif": png(b"eXIf", GARBAGE),
    "png exif cut short": png(b"eXIf", EXIF[6:14]),
    "png exif checksum": png(b"eXIf", EXIF[6:], crc=1),
    "png text checksum": png(b"tEXt", b"a\0b", crc=1),
    "png long text": png(b"zTXt", b"a\0\0" + zlib.compress(bytes(5_000_000))),
    "png profile": png(b"iCCP", b""),
    "png gamma": png(b"gAMA", b""),
    "png size of pixels": png(b"pHYs", b"\0"),
    "png animation": png(b"acTL", b"\0"),
    "png nameless chunk": png(b"\0\0\0\0", b""),
    "webp exif": encode("WEBP", lossless=True, exif=b"Exif\0\0" + GARBAGE),
    "webp no tiff": encode("WEBP", lossless=True, exif=b"Exif\0\0no tiff"),
    "webp xmp": encode("WEBP", lossless=True, xmp=b"\xff<tiff:Orientation>a<"),
    "webp length of exif": webp_with_flagged_garbage(),
    "jpeg exif": jpeg(0xE1, b"Exif\0\0" + GARBAGE),
    "jpeg header": jpeg(0xE0, b"JFIF\0"),
    "jpeg profile": jpeg(0xE2, b"ICC_PROFILE\0"),
    "jpeg adobe": jpeg(0xEE, b"Adobe"),
    "jpeg photoshop": jpeg(0xED, b"Photoshop 3.0\x008BIM\4\4\0\0\xff\xff\xff\xff12"),
    "gif comment": encode("GIF", comment=GARBAGE),
    "tiff exif": tiff(34665, 0x7FFFFFFF, 4),
    "tiff gps": tiff(34853, 0x7FFFFFFF, 4),
    "tiff orientation": tiff(274, 99, 3),
    "tiff text beyond the file": spoilt_tiff(offset=0x7FFFFFFF),
    "tiff text without end": spoilt_tiff(count=0x7FFFFFFF),
    "tiff text of no type": spoilt_tiff(kind=99),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_metadata_cost_no_pixels(kind):
    pixels = image.decode(BROKEN[kind], SIZE, 3)
    form = kind.partition(" ")[0].upper()
    clean = encode(form, **({"lossless": True} if form == "WEBP" else {}))
    np.testing.assert_array_equal(pixels, image.decode(clean, SIZE, 3))


def test_a_file_is_read_as_its_bytes_are(tmp_path):
    for kind in ("png exif", "png text checksum", "webp exif"):
        file = tmp_path / "image"
        file.write_bytes(BROKEN[kind])
        decoded = image.decode(file, SIZE, 3)
        np.testing.assert_array_equal(decoded, image.decode(BROKEN[kind], SIZE, 3))


@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_as_pillow_turns_it(form, orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if form == "WEBP" else {}
    whole = encode(form, exif=exif, **options)
    with Image.open(io.BytesIO(whole)) as opened:
        upright = ImageOps.exif_transpose(opened)
    wanted = upright.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(image.decode(whole, SIZE, 3), np.asarray(wanted))


@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
def test_metadata_are_left_out_and_pixels_are_not(form):
    options = {"lossless": True} if form == "WEBP" else {}
    whole = encode(form, exif=TURNED, **options)
    with (
        Image.open(io.BytesIO(metadata.strip(whole))) as bare,
        Image.open(io.BytesIO(whole)) as own,
    ):
        assert (dict(bare.getexif()), dict(own.getexif())) == ({}, {0x0112: 6})
        np.testing.assert_array_equal(bare, own)


def test_what_has_no_metadata_stays_as_it_is():
    for whole in (encode("PNG"), encode("GIF"), encode("BMP"), b"no image"):
        assert metadata.strip(whole) == whole
    described = tiff(270, "a description", 2)
    assert b"description" in described
    decoded = image.decode(metadata.strip(described), SIZE, 3)
    np.testing.assert_array_equal(decoded, image.decode(described, SIZE, 3))


@pytest.mark.parametrize("kind", ["png exif", "png text checksum", "jpeg exif"])
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_a_file_cut_short_is_still_undecodable(kind, share):
    whole = BROKEN[kind]
    with pytest.raises(image.UndecodableImage):
        image.decode(whole[: int(share * len(whole))], SIZE, 3)
