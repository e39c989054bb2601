"""Near-copies between sets: all that were planted are found, and nothing else."""

import io

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from support import tiny

from flax_adapt import defaults
from flax_adapt.data import duplicates, source
from flax_adapt.data.base import Source
from flax_adapt.data.duplicates import images, texts

SECTION = ConfigDict(defaults.image_data("folder:x", "train", image_size=64))
TEXTS = ConfigDict(defaults.text_data("jsonl:x", "train", "tokenizer"))


def picture(seed):
    """A smooth picture in colour, like no other."""
    rng = np.random.default_rng([7, seed])
    coarse = Image.fromarray(rng.integers(20, 200, (7, 7, 3)).astype(np.uint8))
    return coarse.resize((96, 96), Image.Resampling.BICUBIC)


def encode(picture, **options):
    file = io.BytesIO()
    picture.save(file, **options)
    return file.getvalue()


CHANGES = (
    lambda one: encode(one, format="JPEG", quality=40),
    lambda one: encode(one.resize((41, 60)), format="PNG"),
    lambda one: encode(one.point(lambda x: min(255, int(1.25 * x) + 10)), format="PNG"),
    lambda one: encode(one.point(lambda x: int(0.6 * x)), format="JPEG", quality=70),
)


def source_of(where, items):
    names = [f"{where}/{number:04}" for number in range(len(items))]
    labels = np.zeros(len(items), np.int32)
    return Source(where, names, (), lambda i: (items[i], 0), lambda: labels, {})


def test_fifty_planted_near_copies_of_images_are_listed_and_no_other():
    tested = [encode(picture(i), format="PNG") for i in range(150)]
    copies = [CHANGES[i % len(CHANGES)](picture(3 * i)) for i in range(50)]
    pool = [encode(picture(1000 + i), format="PNG") for i in range(150)] + copies
    pool.insert(20, b"no image")
    ours = duplicates.describe(source_of("test", tested), SECTION)
    others = ConfigDict({**SECTION, "split": "pool"})
    found = duplicates.find(ours, duplicates.describe(source_of("pool", pool), others))
    assert [one.name for one in found] == [f"test/{3 * i:04}" for i in range(50)]
    assert [one.other for one in found] == [f"pool/{151 + i:04}" for i in range(50)]
    assert min(one.similarity for one in found) > 0.99
    # A set beside itself has no copies but those that were planted in it.
    assert duplicates.find(ours, ours) == []
    twice = duplicates.describe(source_of("test", [*tested[:50], *copies]), SECTION)
    assert len(duplicates.find(twice, twice)) == 2 * len({3 * i for i in range(17)})


def test_pictures_of_one_colour_are_the_same_where_their_levels_are():
    grey, noisy, dark = (np.full((32, 32), x, np.float32) for x in (100, 101, 30))
    noisy[::2] -= 1
    eye = images.read_pixels(255 * np.eye(9, dtype=np.uint8), SECTION)
    assert images.correlate(grey, noisy) == 1.0
    assert images.correlate(grey, dark) == 0.0
    assert images.correlate(grey, eye) == 0.0


def test_digits_of_many_writers_are_no_copies():
    """Icons of 8 by 8 dots are the hardest: only those that are the same dot by dot."""
    section = ConfigDict(tiny.digits())
    digits = source.open_source(section)
    found = duplicates.find(
        duplicates.describe(digits.take(np.arange(200)), section),
        duplicates.describe(digits.take(np.arange(200, 600)), section),
    )
    assert len(found) <= 2


WORDS = np.array([f"word{i}" for i in range(3000)])


def text_of(seed, length=80):
    return WORDS[np.random.default_rng([3, seed]).integers(0, 3000, length)].tolist()


def test_planted_near_copies_of_texts_are_listed_and_no_other():
    tested = [(" ".join(text_of(i)),) for i in range(300)]
    copies = []
    for i in range(50):
        words = text_of(5 * i)
        words[i] = "another"  # three shingles of 78
        copies.append((", ".join(words).upper() + "!",))
    pool = [(" ".join(text_of(2000 + i)),) for i in range(1000)] + copies
    ours = duplicates.describe(source_of("test", tested), TEXTS)
    others = ConfigDict({**TEXTS, "split": "pool"})
    found = duplicates.find(ours, duplicates.describe(source_of("pool", pool), others))
    assert [one.name for one in found] == [f"test/{5 * i:04}" for i in range(50)]
    assert [one.other for one in found] == [f"pool/{1000 + i:04}" for i in range(50)]
    assert found[10].similarity == pytest.approx(75 / 81)


def test_jaccard_is_that_of_sets_of_three_words_or_characters():
    first, second = (texts.hash_shingles(t) for t in ("A b, c d!", "a B c e"))
    assert (len(first), len(second)) == (2, 2)
    assert texts.jaccard(first, second) == 1 / 3
    assert texts.jaccard(first, first) == 1
    long = "的一是了我不人在他有这个上们来到时大地为子中你说生国年着就那和要她出也"
    assert len(texts.hash_shingles(long)) == len(long) - 2
    assert len(texts.hash_shingles("")) == len(texts.hash_shingles("one")) == 1


def test_a_text_that_comes_a_thousand_times_has_a_few_candidates():
    many = source_of("a", [("the same words in each of them",)] * 1000)
    codes = duplicates.describe(many, TEXTS).codes
    rows = texts.list_candidates(codes, codes, duplicates.MOST)
    assert {len(some) for some in rows} == {duplicates.MOST}
