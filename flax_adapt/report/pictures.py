"""Examples as pictures or texts in the page, read from the data of the run where it is there."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from flax_adapt import defaults
from flax_adapt.base import config as configs
from flax_adapt.report import backbones
from flax_adapt.report.workdir import Run
from flax_adapt.stage import draws

# Pixels of a side: enough to see what it is. Smaller images are magnified by the browser.
SIDE = 112
# Of a text so many words are shown.
MOST_WORDS = 40


def to_data_uri(pixels: np.ndarray) -> str:
    """Returns uint8 [S, S, C] as an image inside of the page; of other C one channel.

    Small ones and grey ones are PNG, others JPEG, which is a tenth of the size.
    """
    from PIL import Image

    colours = pixels if pixels.shape[-1] == 3 else pixels[..., 0]
    image = Image.fromarray(np.ascontiguousarray(colours))
    if image.width > SIDE:
        image = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    kind = "JPEG" if pixels.shape[-1] == 3 and image.width == SIDE else "PNG"
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 85} if kind == "JPEG" else {}))
    text = base64.b64encode(file.getvalue()).decode("ascii")
    return f"data:image/{kind.lower()};base64,{text}"


def to_cell(pixels: np.ndarray, alt: str) -> dict[str, str]:
    """Returns an image of a table of panels, and what it shows in words."""
    return {"image": to_data_uri(pixels), "alt": alt}


def open_whole(run: Run, section: Any) -> Any:
    """Returns all examples of a data section: no subset is drawn. None: they are gone."""
    whole = draws.change_fields(section, subset=configs.build(defaults.ALL))
    return backbones.open_section(run, whole)


def fetch(examples: Any, rows: Sequence[int]) -> np.ndarray:
    """Returns uint8 [n, S, S, C], the images of these rows."""
    index = np.asarray(rows, np.int64)
    images: np.ndarray = examples.batch(index, np.arange(len(index)))["image"]
    return images


def spread_rows(count: int, most: int) -> list[int]:
    """Returns at most `most` rows of a data set, from its first to its last one."""
    rows = np.linspace(0, count - 1, min(count, most)).round().astype(int)
    return [*dict.fromkeys(rows.tolist())]


def show_examples(run: Run, stage: str, names: Sequence[str]) -> dict[str, Any]:
    """Returns {name: {"image": data URI} or {"text": text}} of a stage's test examples.

    {} where the data is gone.
    """
    section = configs.build(run.sections[stage]["eval"]).data
    examples = open_whole(run, section)
    if examples is None:
        return {}
    wanted = {*names}
    places = {name: i for i, name in enumerate(examples.names) if name in wanted}
    if section.modality == "image":
        images = fetch(examples, list(places.values()))
        return {
            name: {"image": to_data_uri(image), "text": ""}
            for name, image in zip(places, images, strict=True)
        }
    index = np.asarray(list(places.values()), np.int64)
    text = examples.batch(index, np.arange(len(index)))["text"]
    return {
        name: {"image": "", "text": read_text(examples.tokenizer, tokens)}
        for name, tokens in zip(places, text.tokens_BL, strict=True)
    }


def read_text(tokenizer: Any, tokens_L: np.ndarray) -> str:
    """Returns the first words of a row of tokens."""
    words = tokenizer.decode(tokens_L).split()
    return " ".join(words[:MOST_WORDS]) + " …" * (len(words) > MOST_WORDS)
