"""Images of prepared TensorFlow datasets."""

import logging
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from flax_adapt.base import errors
from flax_adapt.data import prepared
from flax_adapt.data.base import UNLABELLED, NumberedNames, Source

log = logging.getLogger(__name__)


def open_tfds_images(name: str, config_data: ConfigDict) -> Source:
    """Returns the source of NAME[:config]: its image feature, and a class label if any.

    Raises UserError where it is not prepared or has no single image feature.
    """
    # Imported here, since it takes seconds.
    import tensorflow_datasets as tfds

    opened = prepared.open_prepared(name, config_data)
    features, where, count = opened.features, opened.where, opened.count
    image = _feature(opened.info, tfds.features.Image, "image")
    label = _feature(opened.info, tfds.features.ClassLabel, "label")
    if image is None:
        raise errors.UserError(
            f"data.source='tfds:{name}' has no one image feature;"
            f" {opened.folder} has {prepared.describe_features(features)}"
        )
    # Pillow decodes later, in threads; a second image, such as a mask, never is.
    skip = tfds.decode.SkipDecoding()
    decoders = {
        k: skip for k, v in features.items() if isinstance(v, tfds.features.Image)
    }
    records = opened.records(config_data.split, decoders)

    def read(i: int) -> tuple[bytes, int]:
        record = records[i]
        if any(record[name] is None for name in (image, label) if name is not None):
            problem = ValueError(f"record {i} lacks a feature")
            raise prepared.damage_error(opened.folder, problem)
        return record[image], UNLABELLED if label is None else int(record[label])

    def read_labels() -> np.ndarray:
        if label is None:
            return np.full(count, UNLABELLED, np.int32)
        log.info("%s: reading the labels of %d records", where, count)
        return np.fromiter((read(i)[1] for i in range(count)), np.int32, count)

    return Source(
        where=where,
        names=NumberedNames(f"{name}/{config_data.split}", count),
        class_names=() if label is None else tuple(features[label].names),
        read=read,
        read_labels=read_labels,
        broken={},
        identify=lambda: opened.identify(config_data.split),
    )


def _feature(info: Any, kind: type, usual: str) -> str | None:
    """Returns the feature of a kind: the supervised one, else `usual`, else the only one."""
    names = [k for k, v in info.features.items() if isinstance(v, kind)]
    supervised = [key for key in info.supervised_keys or () if key in names]
    best = supervised or [key for key in names if key == usual] or names
    if len(best) > 1:
        log.warning("which %s to use is not clear: %s", kind.__name__, best)
    return best[0] if len(best) == 1 else None
