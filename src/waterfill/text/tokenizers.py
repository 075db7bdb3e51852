"""What turns text into numbers of tokens, whoever made it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from waterfill.errors import CalibrationError, UsageError, WaterfillError, first_line
from waterfill.io.configuration import check_links

_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "*.model")
"""One of them is in every directory that has a tokenizer."""


@dataclass(frozen=True)
class Tokens:
    """A tokenizer as this package uses it.

    Attributes:
        plain: tokens of a piece of text, none added.
        whole: tokens of a text of its own, with those that the tokenizer adds, at most so many.
        prefix: what is put in front of every text, such as `<s>`.
        padding: the token that fills up a batch; it is masked, so that any will do.
        size: how many tokens there are; None where that is not known.
    """

    plain: Callable[[str], Sequence[int]]
    whole: Callable[[str, int], Sequence[int]]
    prefix: tuple[int, ...] = ()
    padding: int = 0
    size: int | None = None


def as_tokens(tokenizer: Any) -> Tokens:
    """Read what a caller gave as a tokenizer.

    Args:
        tokenizer: one of transformers, the path of a directory that has one, or a function `str -> list[int]`.

    Raises:
        UsageError: it is none of these.
        WaterfillError: the directory has no tokenizer, or transformers cannot read it.
    """
    if isinstance(tokenizer, str | Path):
        return _of_transformers(load_tokenizer(Path(tokenizer)))
    if hasattr(tokenizer, "convert_tokens_to_ids"):
        return _of_transformers(tokenizer)
    if callable(tokenizer):
        return Tokens(plain=tokenizer, whole=lambda text, length: tokenizer(text)[:length])
    raise UsageError(
        f"Tokenizer is a {type(tokenizer).__name__}; expected one of transformers, the path of a model directory, or a "
        "function str -> list[int]. Give one of these."
    )


def load_tokenizer(directory: Path) -> Any:
    """Read the tokenizer of a model directory; nothing is fetched, and no code in the directory is run.

    Raises:
        FormatError: a file is a link out of the directory.
        WaterfillError: there is none, transformers cannot read it, or transformers is not installed.
    """
    if not any(any(directory.glob(pattern)) for pattern in _FILES):
        raise WaterfillError(
            f"{directory} has no tokenizer; expected a directory with tokenizer.json or the like. Copy the tokenizer's "
            "files next to the weights, or give token ids in place of text."
        )
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise WaterfillError(
            "Text needs the tokenizers of transformers, which is not installed; pip install 'waterfill[transformers]'."
        ) from error
    check_links(directory)
    try:
        return AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise WaterfillError(
            f"The tokenizer in {directory} cannot be read ({first_line(error)}); copy its files again, or give token "
            "ids."
        ) from error


def _of_transformers(tokenizer: Any) -> Tokens:
    def plain(text: str) -> Sequence[int]:
        found: Sequence[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return found

    def whole(text: str, length: int) -> Sequence[int]:
        found: Sequence[int] = tokenizer(text, truncation=True, max_length=length)["input_ids"]
        return found

    padding = tokenizer.pad_token_id
    return Tokens(plain, whole, _prefix(plain, tokenizer), 0 if padding is None else int(padding), len(tokenizer))


def _prefix(plain: Callable[[str], Sequence[int]], tokenizer: Any) -> tuple[int, ...]:
    """Tokens before those of a letter: what the tokenizer puts in front of a text."""
    alone, added = list(plain("a")), list(tokenizer("a")["input_ids"])
    for start in range(len(added) - len(alone) + 1):
        if added[start : start + len(alone)] == alone:
            return tuple(added[:start])
    return ()


def numbers(ids: Any, size: int | None, name: str) -> NDArray[np.int64]:
    """Token numbers as an array, checked to be in the vocabulary.

    Args:
        ids: a sequence of integers.
        size: how many tokens there are; None where that is not known.
        name: where they come from, for errors.

    Raises:
        CalibrationError: they are no integers, or one is negative or too large.
    """
    try:
        found = np.asarray(ids)
    except (TypeError, ValueError, RuntimeError):
        found = np.empty(1, object)
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
        raise CalibrationError(
            f"{name} gives tokens of type {type(ids).__name__}; expected a sequence of integers. "
            "Give a tokenizer str -> list[int], or token ids."
        )
    low, high = (int(found.min()), int(found.max())) if found.size else (0, 0)
    if low < 0 or (size is not None and high >= size):
        expected = "0 or more" if size is None else f"0 to {size - 1}"
        raise CalibrationError(
            f"{name} has the token {low if low < 0 else high}; expected {expected}. "
            "Give tokens of the model's own tokenizer."
        )
    return found.astype(np.int64)
