"""The tokenizer of a model folder, run by the Rust library `tokenizers`.

    tokenizer.json            used as it is; its truncation and padding are switched off
    vocab.txt                 BERT's WordPiece
    vocab.json + merges.txt   RoBERTa's byte-level BPE

The first of these that exists is used. Special tokens are those that special_tokens_map.json
or tokenizer_config.json name, else the usual ones: [CLS] [SEP] [PAD] [MASK] [UNK], or
<s> </s> <pad> <mask> <unk>.
"""

import concurrent.futures
import contextlib
import dataclasses
import itertools
import os
import pathlib
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from flax_adapt.base import errors
from flax_adapt.base.hub import weights_path
from flax_adapt.data.base import Texts
from flax_adapt.data.texts import layouts, token_rows, vocabularies
from flax_adapt.data.texts.token_rows import Pieces, Template

if TYPE_CHECKING:
    import tokenizers

# The files of a tokenizer, which are copied with a saved model.
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
)
CHUNK = 1024  # texts that one thread tokenises at a time
MAX_PROBES = 1000  # words of a vocabulary that are tried to find the template


class Encoding(NamedTuple):
    """The tokens of one text or pair, int32 [l]; words are -1 at special tokens."""

    tokens: np.ndarray
    token_types: np.ndarray
    words: np.ndarray


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Converts text to token ids and back.

    vocab_size   one more than the greatest id
    special      bool [vocab_size]: ids of special tokens, which belong to no word, also
                 where they are spelt out in a text
    files        the files that are copied with a model
    """

    vocab_size: int
    cls_id: int
    sep_id: int
    pad_id: int
    mask_id: int
    unk_id: int
    special: np.ndarray
    template: Template
    files: tuple[pathlib.Path, ...]
    rust: "tokenizers.Tokenizer"

    def encode(self, texts: Sequence[Texts]) -> list[Encoding]:
        """Returns the encodings of texts, or of pairs, with special tokens, not cut off."""
        num_texts = len(texts[0]) if texts else 1
        if any(len(parts) != num_texts for parts in texts):
            raise ValueError("encode takes texts or pairs, not both at once")
        pieces = self.pieces(list(itertools.chain.from_iterable(texts)))
        rows, _ = layouts.pad_rows(pieces, self.template, num_texts, sys.maxsize)
        return [self._encoding(rows, i) for i in range(len(texts))]

    def _encoding(self, rows: token_rows.TokenRows, i: int) -> Encoding:
        length, special = int(rows.lengths[i]), self.special
        text = token_rows.to_text(rows, np.array([i]), length, self.pad_id, special)
        fields = (text.tokens_BL, text.token_types_BL, text.words_BL)
        return Encoding(*(np.asarray(field)[0] for field in fields))

    def pieces(self, texts: Sequence[str]) -> Pieces:
        """Returns the tokens of texts, without special tokens; runs on all cores."""
        chunks = (texts[i : i + CHUNK] for i in range(0, len(texts), CHUNK))
        with concurrent.futures.ThreadPoolExecutor() as threads:
            return _join(list(threads.map(self._chunk, chunks)))

    def _chunk(self, texts: Sequence[str]) -> Pieces:
        try:
            encodings = self.rust.encode_batch(list(texts), add_special_tokens=False)
        except Exception as error:  # the library raises nothing else
            raise errors.UserError(
                f"tokenizer: {self.files[0]} cannot encode a text: {error}; its model has"
                " no unknown token: set unk_token there"
            ) from None
        sizes = [len(encoding) for encoding in encodings]
        tokens = _flat(encoding.ids for encoding in encodings)
        words = _flat(encoding.word_ids for encoding in encodings)
        offsets = np.cumsum([0, *sizes])
        starts = np.diff(words, prepend=-1) != 0
        starts[offsets[:-1][np.diff(offsets) > 0]] = True
        return Pieces(tokens, starts, offsets)

    def token_types(self, num_texts: int) -> int:
        """Returns how many token types a row of `num_texts` texts has."""
        return 1 + self.template.second_type if num_texts == 2 else 1

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of tokens, without special ones."""
        return self.rust.decode([int(i) for i in ids])

    def token(self, id: int) -> str:
        """Returns the spelling of a token in the vocabulary."""
        return self.rust.id_to_token(int(id)) or ""


def _flat(lists: Iterable[Iterable[Any]]) -> np.ndarray:
    return np.fromiter(itertools.chain.from_iterable(lists), np.int32)


def _join(chunks: list[Pieces]) -> Pieces:
    if not chunks:
        return Pieces(np.zeros(0, np.int32), np.zeros(0, bool), np.zeros(1, np.int64))
    sizes = np.concatenate([np.diff(chunk.offsets) for chunk in chunks])
    tokens = np.concatenate([chunk.tokens for chunk in chunks])
    starts = np.concatenate([chunk.starts for chunk in chunks])
    return Pieces(tokens, starts, np.concatenate([[0], np.cumsum(sizes)]))


def open_tokenizer(path: str | os.PathLike) -> Tokenizer:
    """Returns the tokenizer of a model folder.

    Raises UserError where its files are missing or damaged, or lack a special token.
    """
    # We run threads of our own; those of the library warn, or hang, after a fork.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    folder = weights_path(path)
    rust = vocabularies.load(folder)
    vocabulary = rust.get_vocab(with_added_tokens=True)
    names = vocabularies.special_tokens(folder, vocabulary)
    ids = {f"{role}_id": vocabulary[token] for role, token in names.items()}
    vocab_size = max(vocabulary.values()) + 1
    special = np.zeros(vocab_size, bool)
    added = rust.get_added_tokens_decoder()
    special[[i for i, token in added.items() if token.special]] = True
    special[list(ids.values())] = True
    files = tuple(folder / name for name in FILES if (folder / name).is_file())
    template = _template(rust, ids["cls_id"], ids["sep_id"], folder)
    return Tokenizer(vocab_size, **ids, special=special, template=template,
                     files=files, rust=rust)  # fmt: skip


def _encode_pair(rust: "tokenizers.Tokenizer", folder: pathlib.Path) -> Any:
    """Returns the encoding of a pair of texts that gives at least one token each.

    A tokenizer without an unknown token drops or refuses unknown words, so that several are
    tried.
    """
    vocabulary = rust.get_vocab(with_added_tokens=True)
    texts = itertools.chain(["a"], itertools.islice(vocabulary, MAX_PROBES))
    for text in texts:
        with contextlib.suppress(Exception):  # the library raises nothing else
            pair = rust.encode(text, text)
            if {0, 1} <= set(pair.sequence_ids):
                return pair
    raise errors.UserError(
        f"tokenizer: {folder} makes no token of {text!r}, nor of other words of its own"
        " vocabulary; it must have a model and pre_tokenizer that fit it"
    )


def _template(
    rust: "tokenizers.Tokenizer", cls_id: int, sep_id: int, folder: pathlib.Path
) -> Template:
    """Returns the special tokens that the tokenizer adds to a pair of texts."""
    pair = _encode_pair(rust, folder)
    sides = pair.sequence_ids
    first, second = sides.index(0), sides.index(1)
    end_first = len(sides) - sides[::-1].index(0)
    end_second = len(sides) - sides[::-1].index(1)
    ids = pair.ids
    found = Template(
        before=tuple(ids[:first]),
        between=tuple(ids[end_first:second]),
        after=tuple(ids[end_second:]),
        second_type=pair.type_ids[second],
    )
    ends = (found.before[:1], found.between[:1], found.after[-1:])
    if ends != ((cls_id,), (sep_id,), (sep_id,)):
        raise errors.UserError(
            f"tokenizer: {folder} does not write a pair as CLS A SEP B SEP, but"
            f" with {found.before}, {found.between} and {found.after} around the texts;"
            " its post_processor must add the special tokens"
        )
    return found
