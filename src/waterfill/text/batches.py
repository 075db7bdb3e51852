"""Batches of tokens: windows of a long text, or sentences side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from waterfill.errors import CalibrationError, UsageError
from waterfill.models.batches import describe, is_integer
from waterfill.text.sources import Source, blocks, opened
from waterfill.text.tokenizers import Tokens, as_tokens, numbers


def text_batches(
    source: Any,
    tokenizer: Any = None,
    *,
    length: int = 512,
    count: int = 128,
    seed: int = 0,
    batch_size: int = 1,
) -> list[Any]:
    """Windows at random places of a text, for language models that predict the next token.

    Windows share no token where the text is long enough for that; otherwise they start at different places. Every
    one begins with what the tokenizer puts in front of a text, such as `<s>`. The same arguments give the same
    windows on every machine.

    Args:
        source: path of a UTF-8 text file, of a .jsonl file with "text" in every line, or of an .npz file of token
            ids (one axis: a text; two: windows, all of which come back); or an iterable of strings or of sequences of
            token ids, read one after the other as one text. An iterable of batches comes back as a list, its tensors
            [windows, tokens] as dicts.
        tokenizer: one of transformers, the path of a model directory, or a function `str -> list[int]`.
        length: tokens of a window.
        count: windows.
        seed: chooses their places.
        batch_size: windows in a batch. A batch of logits takes 4 bytes for each window, token and vocabulary entry.

    Returns:
        Dicts of `input_ids` and `attention_mask`, both int64 [windows, length].

    Raises:
        CalibrationError: the text is too short, or a token is not in the vocabulary.
        FormatError: a file is not what it says it is.
        UsageError: an argument is none of these, or not positive.
        WaterfillError: a file is missing, or the tokenizer cannot be read.

    Example:
        >>> batches = text_batches(["to be or not to be"], lambda text: list(text.encode()), length=4, count=2)
        >>> [tuple(batch["input_ids"].shape) for batch in batches]
        [(1, 4), (1, 4)]
    """
    _check_positive(length=length, count=count, batch_size=batch_size)
    given = opened(source, batch_size)
    if given.kind == "batches":
        return [_as_dict(batch) for batch in given.items]
    tokens = _tokens_for(given, tokenizer)
    if len(tokens.prefix) >= length:
        raise UsageError(
            f"length={length} leaves no room after {len(tokens.prefix)} tokens of the tokenizer; ask more."
        )
    stream = np.concatenate(list(_stream(given, tokens)) or [np.empty(0, np.int64)])
    body = length - len(tokens.prefix)
    starts = _starts(len(stream), body, count, seed)
    front = np.tile(np.array(tokens.prefix, np.int64), (count, 1))
    windows = np.concatenate([front, stream[starts[:, None] + np.arange(body)]], axis=1)
    return [_filled(windows[first : first + batch_size], tokens.padding) for first in range(0, count, batch_size)]


def sentence_batches(
    source: Any,
    tokenizer: Any = None,
    *,
    length: int = 512,
    count: int = 128,
    seed: int = 0,
    batch_size: int = 32,
) -> list[Any]:
    """Sentences chosen at random, each tokenized on its own, for encoders.

    Sentences of similar length share a batch, the shorter ones padded on the right; the batches come in random order.

    Args:
        source: as in `text_batches`; the lines of a file that are not blank, or the strings or sequences of an
            iterable, are the sentences.
        tokenizer: as there; it adds its special tokens to every sentence.
        length: most tokens of a sentence; what is longer is cut.
        count: sentences.
        seed: chooses them.
        batch_size: sentences in a batch.

    Returns:
        Dicts of `input_ids` and `attention_mask` (0 on padding), both int64 [sentences, tokens].

    Raises:
        CalibrationError: there are not so many sentences, or a token is not in the vocabulary.
        FormatError: a file is not what it says it is.
        UsageError: an argument is none of these, or not positive.
        WaterfillError: a file is missing, or the tokenizer cannot be read.

    Example:
        >>> batches = sentence_batches(["to be", "or not"], lambda text: list(text.encode()), count=2)
        >>> batches[0]["attention_mask"].tolist()
        [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]]
    """
    _check_positive(length=length, count=count, batch_size=batch_size)
    given = opened(source, batch_size)
    if given.kind == "batches":
        return [_as_dict(batch) for batch in given.items]
    tokens = _tokens_for(given, tokenizer)
    found = [each for each in given.items if len(each.strip() if isinstance(each, str) else each)]
    if len(found) < count:
        raise _too_short(len(found), count, "sentences", f"ask for count={max(1, len(found))}")
    generator = np.random.default_rng(seed)
    chosen = [found[index] for index in generator.choice(len(found), count, replace=False)]
    rows = sorted((_sentence(each, given, tokens, length) for each in chosen), key=len)
    cut = [rows[first : first + batch_size] for first in range(0, count, batch_size)]
    return [_filled(cut[index], tokens.padding) for index in generator.permutation(len(cut))]


def _check_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise UsageError(f"{name}={value} is wrong; expected at least 1.")


def _tokens_for(given: Source, tokenizer: Any) -> Tokens:
    if tokenizer is not None:
        return as_tokens(tokenizer)
    if given.kind == "text":
        raise UsageError(
            f"{given.name} is text without a tokenizer; expected one of transformers, the path of a model directory, "
            "or a function str -> list[int]. Give one, or token ids in place of text."
        )
    return Tokens(plain=_no_tokenizer, whole=_no_tokenizer)


def _no_tokenizer(*_: Any) -> Sequence[int]:
    raise AssertionError("token ids need no tokenizer")


def _stream(given: Source, tokens: Tokens) -> Iterator[NDArray[np.int64]]:
    """Tokens of the text, a piece at a time."""
    if given.kind == "tokens":
        yield from (numbers(ids, tokens.size, given.name) for ids in given.items)
    else:
        yield from (numbers(tokens.plain(text), tokens.size, "The tokenizer") for text in blocks(given.items))


def _starts(available: int, length: int, count: int, seed: int) -> NDArray[np.int64]:
    """Where windows start: disjoint ones are drawn from all ways to place them, others from all places.

    Raises:
        CalibrationError: there are not so many places.
    """
    generator = np.random.default_rng(seed)
    gaps = available - count * (length - 1)
    if gaps >= count:
        places = np.sort(generator.choice(gaps, count, replace=False))
        return generator.permutation(places + np.arange(count) * (length - 1))
    if available - length + 1 < count:
        raise _too_short(available, length + count - 1, "tokens", "ask for a smaller length= or count=")
    return generator.choice(available - length + 1, count, replace=False)


def _sentence(item: Any, given: Source, tokens: Tokens, length: int) -> NDArray[np.int64]:
    if given.kind == "tokens":
        return numbers(item, tokens.size, given.name)[:length]
    return numbers(tokens.whole(item.strip(), length), tokens.size, "The tokenizer")


def _filled(rows: Iterable[NDArray[np.int64]], padding: int) -> dict[str, torch.Tensor]:
    """One batch of rows of token ids, padded on the right."""
    ids = [torch.from_numpy(np.ascontiguousarray(row)) for row in rows]
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad(ids, batch_first=True, padding_value=padding),
        "attention_mask": pad([torch.ones_like(row) for row in ids], batch_first=True),
    }


def _as_dict(batch: Any) -> Any:
    """A tensor of token ids as the dict that models of transformers take; every other batch as it is."""
    if not isinstance(batch, torch.Tensor):
        return batch
    if batch.ndim != 2 or not is_integer(batch):
        raise CalibrationError(
            f"A batch of tokens is {describe(batch)}; expected integers [windows, tokens]. Give such tensors, dicts, "
            "or pairs (input, target)."
        )
    ids = batch.to(torch.int64)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _too_short(found: int, needed: int, unit: str, remedy: str) -> CalibrationError:
    return CalibrationError(
        f"The text has {found:,} {unit}; expected at least {needed:,}. Give more text, or {remedy}."
    )
