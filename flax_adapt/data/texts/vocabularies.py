"""Builds tokenizers from the files of a model folder, and finds their special tokens."""

import json
import pathlib
from collections.abc import Callable, Container
from typing import TYPE_CHECKING, Any

from flax_adapt.base import errors

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# role -> its usual spellings: in BERT, in RoBERTa
USUAL = {
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "pad": ("[PAD]", "<pad>"),
    "mask": ("[MASK]", "<mask>"),
    "unk": ("[UNK]", "<unk>"),
}
ENDS = ("sep", "cls")
MARK = "\ufeff"  # byte order mark at the start of a UTF-8 file, not part of its text
SETTINGS, SPECIAL, ADDED = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def load(folder: pathlib.Path) -> "Tokenizer":
    """Returns the tokenizer of a model folder, without truncation and padding.

    Raises UserError where its files are missing or damaged.
    """
    for needed, make in KINDS.items():
        if all((folder / name).is_file() for name in needed):
            try:
                tokenizer = make(folder)
            except errors.UserError:
                raise
            except Exception as error:
                # The library raises bare Exceptions from damaged files.
                raise errors.UserError(
                    f"tokenizer: cannot read {needed[0]} in {folder}: {error}"
                ) from error
            tokenizer.no_truncation()
            tokenizer.no_padding()
            return tokenizer
    there = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else "no folder"
    raise errors.UserError(
        f"tokenizer: {folder} must be a folder with"
        f" {' or '.join(' and '.join(needed) for needed in KINDS)}; there is {there}"
    )


def special_tokens(folder: pathlib.Path, vocabulary: Container[str]) -> dict[str, str]:
    """Returns {role: token}; raises UserError for a role without a token."""
    named = _settings(folder, SETTINGS) | _settings(folder, SPECIAL)
    found = {}
    for role, usual in USUAL.items():
        own = named.get(f"{role}_token")
        own = own["content"] if isinstance(own, dict) else own
        candidates = (own,) if own else usual
        known = [token for token in candidates if token in vocabulary]
        if not known:
            raise errors.UserError(
                f"tokenizer: {folder} has no {role} token (looked for"
                f" {', '.join(candidates)}); name it as {role}_token in {SPECIAL}"
            )
        found[role] = known[0]
    return found


def read_text(file: pathlib.Path) -> str:
    """Returns a text in UTF-8, without the mark (BOM) that some editors put first."""
    return file.read_text("utf-8-sig")


def _from_json(folder: pathlib.Path) -> "Tokenizer":
    from tokenizers import Tokenizer

    return Tokenizer.from_str(read_text(folder / "tokenizer.json"))


def _word_piece(folder: pathlib.Path) -> "Tokenizer":
    """Returns BERT's WordPiece: words are split into the longest known pieces from the left."""
    from tokenizers import (
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )

    vocabulary = {
        token.removeprefix(MARK): id
        for token, id in models.WordPiece.read_file(str(folder / "vocab.txt")).items()
    }
    settings = _settings(folder, SETTINGS)
    names = special_tokens(folder, vocabulary | _settings(folder, ADDED))
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=names["unk"]))
    lower = settings.get("do_lower_case")
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars") is not False,
        strip_accents=settings.get("strip_accents"),
        lowercase=_is_uncased(vocabulary) if lower is None else lower,
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    sep, cls = _add(tokenizer, folder, names, mask_takes_space=False)
    tokenizer.post_processor = processors.BertProcessing(sep, cls)
    return tokenizer


def _byte_pairs(folder: pathlib.Path) -> "Tokenizer":
    """Returns RoBERTa's byte-level BPE: GPT-2's merges, with its own special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    spaced = _settings(folder, SETTINGS).get("add_prefix_space") is True
    vocabulary = json.loads(read_text(folder / "vocab.json"))
    merges = _merges(folder / "merges.txt")
    names = special_tokens(folder, vocabulary | _settings(folder, ADDED))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=spaced)
    tokenizer.decoder = decoders.ByteLevel()
    sep, cls = _add(tokenizer, folder, names, mask_takes_space=True)
    tokenizer.post_processor = processors.RobertaProcessing(
        sep, cls, trim_offsets=True, add_prefix_space=spaced
    )
    return tokenizer


def _merges(file: pathlib.Path) -> list[tuple[str, str]]:
    """Returns the pairs of a merges.txt, one a line; a line with the version is skipped."""
    lines = [line for line in read_text(file).split("\n") if line]
    pairs = [line.rstrip("\r").split(" ") for line in lines if not _is_version(line)]
    if wrong := next((pair for pair in pairs if len(pair) != 2), None):
        raise ValueError(f"{file.name}: {' '.join(wrong)[:80]!r} is no pair")
    return [(first, second) for first, second in pairs]


def _is_version(line: str) -> bool:
    return line.startswith("#version")


# needed files -> function that builds the tokenizer; the first with all files is used
KINDS: dict[tuple[str, ...], Callable[[pathlib.Path], "Tokenizer"]] = {
    ("tokenizer.json",): _from_json,
    ("vocab.txt",): _word_piece,
    ("vocab.json", "merges.txt"): _byte_pairs,
}


def _is_uncased(vocabulary: dict[str, int]) -> bool:
    """Returns whether no word has a capital, special tokens aside."""
    words = (token for token in vocabulary if token[:1] not in "[<")
    return all(word == word.lower() for word in words)


def _add(
    tokenizer: "Tokenizer",
    folder: pathlib.Path,
    names: dict[str, str],
    mask_takes_space: bool,
) -> list[tuple[str, int]]:
    """Adds special tokens, which are never split; returns (token, id) of sep and cls.

    mask_takes_space: whether the mask token includes the space before it, as RoBERTa's.
    """
    from tokenizers import AddedToken

    added = sorted(_settings(folder, ADDED).items(), key=lambda item: item[1])
    tokenizer.add_tokens([token for token, _ in added])
    wrong = [token for token, i in added if tokenizer.token_to_id(token) != i]
    if wrong:
        raise errors.UserError(
            f"tokenizer: the ids in {folder / ADDED} do not follow those of the"
            f" vocabulary: {wrong[:3]}"
        )
    for role, name in names.items():
        takes = mask_takes_space and role == "mask"
        token = AddedToken(name, lstrip=takes, normalized=False, special=True)
        tokenizer.add_special_tokens([token])
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    return [(names[role], vocabulary[names[role]]) for role in ENDS]


def _settings(folder: pathlib.Path, name: str) -> dict[str, Any]:
    """Returns the contents of a JSON file, {} where it does not exist."""
    file = folder / name
    if not file.is_file():
        return {}
    try:
        return json.loads(read_text(file))
    except ValueError as error:
        raise errors.UserError(f"tokenizer: {file} is not JSON: {error}") from error
