"""The argument `new_tokens`: words of a domain become tokens of a text model."""

import hashlib
import logging
import tempfile
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from flax_adapt import data, weights
from flax_adapt.base.errors import UserError, reword_errors
from flax_adapt.base.hub import weights_path
from flax_adapt.base.paths import local_path
from flax_adapt.data.texts import new_tokens
from flax_adapt.data.texts.new_tokens import NewTokens
from flax_adapt.data.texts.tokenizer import Tokenizer
from flax_adapt.defaults import shared
from flax_adapt.defaults.text import TextData, text_model
from flax_adapt.defaults.texts.optim import text_optim
from flax_adapt.surgery import vocabulary
from flax_adapt.weights import strict

log = logging.getLogger(__name__)
# Arguments of a config, which its docstring explains.
ARGUMENTS: dict[str, Any] = dict(new_tokens="", new_tokens_warmup=500)
STAGE = "new_tokens_warmup"


def grow_init(args: Any) -> Any:
    """Returns the arguments with an `init` that has the words of `args.new_tokens`.

    It is a folder beside the file of words, written once: the weights of `init` with its
    tokenizer, both grown. Raises UserError for words that the tokenizer cannot take.
    """
    if not args.new_tokens or not args.init:
        return args
    if args.new_tokens_warmup < 1:
        raise UserError(
            f"new_tokens_warmup={args.new_tokens_warmup} must be at least 1, the steps "
            "that train embeddings alone"
        )
    file, used = local_path(args.new_tokens), data.open_tokenizer(args.init)
    new = new_tokens.split_words(used, new_tokens.read_words(file))
    if not new.words:
        raise UserError(f"new_tokens={file}: all of its words are tokens already")
    folder = file.with_name(f"{file.name}.{_digest(args, new)}")
    if not folder.exists():
        _write(args, used, new, folder)
        log.info("%s: %s new tokens; init=%s", file, len(new.words), folder)
    return ConfigDict({**args, "init": str(folder), "init_format": ""})


def _digest(args: Any, new: NewTokens) -> str:
    """Returns a short name of the words and of the files that they are added to."""
    found = weights_path(args.init)
    files = sorted(found.iterdir()) if found.is_dir() else [found]
    stats = [
        (file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files
    ]
    content = repr((new, str(found.resolve()), args.init_format, stats))
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _write(args: Any, used: Tokenizer, new: NewTokens, folder: Path) -> None:
    options = shared.describe_init(args.init, args.init_format, {})
    with reword_errors(shared.ARGUMENTS):
        has_head = "mlm" in weights.parts(args.init, "mlm", **options)
        task = "mlm" if has_head else "encoder"
        config, params, _ = weights.load(args.init, task, pooling=None, **options)
    leaves = vocabulary.add_tokens(strict.flatten(params), new.pieces, new.first)
    size = len(leaves[vocabulary.TABLES[0]])
    with tempfile.TemporaryDirectory() as grown:
        new_tokens.write_tokenizer(used, new, Path(grown))
        weights.save(
            folder,
            {**config, "vocab_size": size},
            strict.unflatten(leaves),
            task,
            pooling="cls",
            preprocessor=None,
            tokenizer=grown,
            class_names=None,
        )


def warmup_stages(texts: TextData, args: Any) -> list[dict[str, Any]]:
    """Returns the stage that trains the table of token embeddings alone, or [].

    It follows on a warm-up of a new head, if there is one.
    """
    if not args.new_tokens:
        return []
    stage = texts.pretrain_stage(STAGE)
    steps = args.new_tokens_warmup
    stage["num_steps"] = steps
    # All leaves but one: the table is that of the logits, too.
    freeze = (r"(?!encoder/embed/token$).*",)
    stage["optim"] = text_optim(steps, lr=args.lr, freeze=freeze)
    stage["model"] = text_model()
    return [stage]
