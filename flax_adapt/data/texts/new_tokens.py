"""Adds words of a domain to a WordPiece tokenizer, each of them one token."""

import json
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any, NamedTuple

from flax_adapt.base import errors
from flax_adapt.data.texts import tokenizer, vocabularies
from flax_adapt.data.texts.tokenizer import Tokenizer

JSON, LINES = "tokenizer.json", "vocab.txt"


class NewTokens(NamedTuple):
    """Words as the tokenizer spells them, and the ids of the pieces they had until now.

    Their own ids are first, first + 1, ...
    """

    words: tuple[str, ...]
    pieces: tuple[tuple[int, ...], ...]
    first: int


def read_words(file: pathlib.Path) -> list[str]:
    """Returns the words of a file, one a line; raises UserError where it has none."""
    try:
        lines = vocabularies.read_text(file).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise errors.UserError(f"new_tokens={file}: {reason}") from None
    words = list(dict.fromkeys(filter(None, map(str.strip, lines))))
    if not words:
        raise errors.UserError(f"new_tokens={file}: holds no word; write one a line")
    return words


def split_words(used: Tokenizer, words: Sequence[str]) -> NewTokens:
    """Returns the words that are no token yet, in their order, and their pieces.

    Raises UserError for a tokenizer that is no WordPiece, and for a word that it splits
    before its vocabulary is asked, as at a hyphen.
    """
    kind = json.loads(used.rust.to_str())["model"].get("type", "WordPiece")
    if kind != "WordPiece":
        raise errors.UserError(
            f"new_tokens: the tokenizer {used.files[0].parent} is a {kind}; words are added "
            "to a WordPiece, as BERT's, DistilBERT's and ELECTRA's"
        )
    vocabulary, found = used.rust.get_vocab(with_added_tokens=True), {}
    for word in words:
        spelt = _spell(used.rust, word)
        if spelt not in vocabulary:
            encoding = used.rust.encode(spelt, add_special_tokens=False)
            found[spelt] = tuple(encoding.ids)
    return NewTokens(tuple(found), tuple(found.values()), used.vocab_size)


def _spell(rust: Any, word: str) -> str:
    """Returns the word after normalisation, such as in lower case."""
    text = rust.normalizer.normalize_str(word) if rust.normalizer else word
    parts = [part for part, _ in rust.pre_tokenizer.pre_tokenize_str(text)]
    if len(parts) != 1:
        raise errors.UserError(
            f"new_tokens: {word!r} is {len(parts)} words to the tokenizer: {parts}; write "
            "each on a line of its own"
        )
    return parts[0]


def write_tokenizer(used: Tokenizer, new: NewTokens, folder: pathlib.Path) -> None:
    """Writes the files of the tokenizer with the new tokens to a folder that exists."""
    for file in used.files:
        shutil.copyfile(file, folder / file.name)
    added = {word: new.first + n for n, word in enumerate(new.words)}
    has_json = (folder / JSON).is_file()
    if has_json:
        content = json.loads(vocabularies.read_text(folder / JSON))
        content["model"]["vocab"] |= added
        text = json.dumps(content, ensure_ascii=False, indent=2)
        (folder / JSON).write_text(text, "utf-8")
    if (folder / LINES).is_file():
        _append_lines(folder, new, has_json)
    grown = tokenizer.open_tokenizer(folder).rust.get_vocab(with_added_tokens=True)
    if any(grown.get(word) != i for word, i in added.items()):
        raise errors.UserError(
            f"new_tokens: the files of the tokenizer {used.files[0].parent} do not take "
            "new words: the ids of its vocabulary are not consecutive"
        )


def _append_lines(folder: pathlib.Path, new: NewTokens, has_json: bool) -> None:
    """Appends to vocab.txt; where its ids end early, tokenizer.json alone has the words."""
    text = (folder / LINES).read_text("utf-8")
    lines = text.removesuffix("\n").split("\n")
    if len(lines) != new.first and has_json:
        (folder / LINES).unlink()
        return
    lines = [*lines, *new.words]
    (folder / LINES).write_text("".join(f"{line}\n" for line in lines), "utf-8")
