"""Texts of TFDS: a set of our own, written to array_record without TensorFlow."""

import numpy as np
import pytest
from support.tiny_text import open_source, rows_of

from flax_adapt.base import errors

REVIEWS = {"train": ["good ünseen", "bad", "good"], "test": ["fine", "bad"]}
STARS = {"good": 10, "bad": 2, "fine": 9}


@pytest.fixture(scope="session")
def reviews(tmp_path_factory):
    """A data_dir with reviews:1.0.0 of texts, pairs and three kinds of labels."""
    import tensorflow_datasets as tfds

    class Reviews(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "text": tfds.features.Text(),
                "title": tfds.features.Text(),
                "label": tfds.features.ClassLabel(names=["bad", "fine", "good"]),
                "stars": tfds.features.Scalar(np.int64),
                "score": tfds.features.Scalar(np.float32),
                "tags": tfds.features.Sequence(tfds.features.Text()),
            }
            kept = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=kept)

        def _split_generators(self, dl_manager):
            return {s: self._generate_examples(t) for s, t in REVIEWS.items()}

        def _generate_examples(self, texts):
            for i, text_ in enumerate(texts):
                name = text_.split()[0]
                yield i, dict(text=text_, title=f"t {text_}", label=name, tags=[text_],
                              stars=STARS[name], score=STARS[name] / 4)  # fmt: skip

    data_dir = str(tmp_path_factory.mktemp("reviews"))
    builder = Reviews(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()
    return data_dir


def test_tfds_reads_texts_and_class_labels(reviews):
    opened = open_source("tfds:reviews", data_dir=reviews)
    assert sorted(rows_of(opened)) == [
        (("bad",), "bad"),
        (("good",), "good"),
        (("good ünseen",), "good"),
    ]
    assert opened.class_names == ("bad", "fine", "good")
    part = open_source("tfds:reviews", data_dir=reviews, split="train[:2]")
    assert rows_of(part) == rows_of(opened)[:2]
    assert part.names[1] == "reviews/train[:2]/000001"


def test_tfds_reads_pairs_and_other_labels(reviews):
    pair = {"data_dir": reviews, "text_fields": ("title", "text"), "split": "test"}
    stars = open_source("tfds:reviews", **pair, label_field="stars")
    assert sorted(rows_of(stars)) == [
        (("t bad", "bad"), "2"),
        (("t fine", "fine"), "9"),
    ]
    # 10 is in the training split alone.
    assert stars.class_names == ("2", "9", "10")
    score = open_source(
        "tfds:reviews", **pair, label_field="score", label_kind="number"
    )
    assert sorted(score.labels.tolist()) == [0.5, 2.25]
    plain = open_source("tfds:reviews", **pair, label_field="")
    assert (plain.labels.tolist(), plain.class_names) == ([-1, -1], ())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"text_fields": ("words",)}, r"has no 'words'; there is \{.*'text': 'Text'"),
        ({"label_field": "gold"}, r"has no 'gold'; there is"),
        ({"text_fields": ("tags",)}, r"'tags' is no string"),
        ({"label_field": "score"}, r"label is no string or whole number"),
        ({"split": "val"}, r"'val'.*\{'train': 3, 'test': 2\}"),
    ],
)
def test_tfds_errors_list_what_there_is(reviews, changes, told):
    with pytest.raises(errors.UserError, match=told):
        open_source("tfds:reviews", data_dir=reviews, **changes)
