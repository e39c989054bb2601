"""Sides of input.py: files of photographs, bare decoders, and our pipeline."""

import functools
import importlib.util
import io
import shutil

import numpy as np
from PIL import Image

QUALITY, NOISE = 90, 4
PILLOW = "Pillow, threads"


def write_files(folder, width, height, count):
    """Writes JPEG files, no two alike; returns their paths."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    photos = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    noise = rng.normal(0, NOISE, (height, width, 3))  # large photographs have some
    folder.mkdir(parents=True)
    for number in range(count):
        left, top = rng.integers(0, 40, 2)
        box = (left, top, left + 600, top + 387)
        crop = photos[number % 2].resize((width, height), Image.Resampling.BICUBIC, box)
        pixels = np.asarray(crop, np.float32)
        pixels = pixels + noise if width > 640 else pixels
        path = folder / f"{number:04d}.jpg"
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(
            path, quality=QUALITY
        )
    return sorted(folder.iterdir())


def decode_pillow(size, path):
    """Bare Pillow: what torchvision's Resize does to an opened file."""
    with Image.open(path) as image:
        square = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
        return np.asarray(square)


def decode_opencv(size, path):
    """Bare OpenCV; INTER_AREA is its resize without aliasing."""
    import cv2

    return cv2.resize(cv2.imread(str(path)), (size, size), interpolation=cv2.INTER_AREA)


def decode_simplejpeg(size, path):
    """libjpeg-turbo at a smaller scale, at least the square's, then Pillow's resize."""
    import simplejpeg

    pixels = simplejpeg.decode_jpeg(
        path.read_bytes(), min_height=2 * size, min_width=2 * size
    )
    image = Image.fromarray(pixels)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def decode_draft(size, path):
    """Pillow's decoder at a smaller scale, as `data.jpeg_draft`."""
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        image.draft(None, (2 * size, 2 * size))
        square = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
        return np.asarray(square)


def in_pool(pool, decode, paths):
    """Pixels [n, S, S, 3] of all files, decoded in a pool."""
    return np.stack([*pool.map(decode, paths)])


class Ours:
    """Our pipeline on a folder; every turn opens it anew, as a stage does."""

    def __init__(self, folder, size, batch, stored="no", draft=False):
        self.folder, self.batch, self.stored = folder, batch, stored
        self.fields = dict(image_size=size, label_field="", jpeg_draft=draft)
        if stored == "no":
            self.fields["cache_bytes"] = 0

    def __call__(self):
        from ml_collections import ConfigDict

        from flax_adapt import data
        from flax_adapt.base import caches
        from flax_adapt.data.images import squares
        from flax_adapt.defaults.image_section import image_data

        if self.stored == "first":
            shutil.rmtree(caches.user_folder("images"), ignore_errors=True)
        squares._share.cache_clear()  # as in another process
        section = ConfigDict(
            image_data(f"folder:{self.folder}", "train", **self.fields)
        )
        opened = data.open_examples(section, "")
        batches = data.eval_batches(opened, self.batch, 0, 1)
        pixels = np.concatenate([batch["image"] for batch in batches])[: len(opened)]
        if opened._squares is not None:
            opened._squares.flush()
        return pixels


def list_sides(paths, threads, processes, size, batch):
    """{name: () -> pixels}, in the order of a turn: stored squares are written, then read."""
    folder = paths[0].parent
    bare = {
        PILLOW: (threads, decode_pillow),
        "Pillow, processes": (processes, decode_pillow),
        "Pillow, threads, draft": (threads, decode_draft),
        "OpenCV, threads": (threads, decode_opencv),
        "simplejpeg, threads, scaled": (threads, decode_simplejpeg),
    }
    ours = functools.partial(Ours, folder, size, batch)
    missing = {
        "OpenCV, threads": "cv2",
        "simplejpeg, threads, scaled": "simplejpeg",
    }
    sides = {
        name: functools.partial(in_pool, pool, functools.partial(decode, size), paths)
        for name, (pool, decode) in bare.items()
        if name not in missing or importlib.util.find_spec(missing[name])
    }
    return sides | {
        "ours": ours(),
        "ours, draft": ours(draft=True),
        "ours, first epoch, stored": ours("first"),
        "ours, second epoch, stored": ours("second"),
    }
