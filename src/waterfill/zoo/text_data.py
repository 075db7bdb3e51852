"""Loaders of text for the language models: batches of (tokens, the token that follows each)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray

from waterfill.errors import FormatError
from waterfill.zoo.arrays import frozen, read_npz
from waterfill.zoo.batches import Batches, Labelled, checked_count, permuted_back, permuted_front
from waterfill.zoo.folder import require_file
from waterfill.zoo.preprocess import token_input

TEST_CHARACTERS = 200_000
"""The end of a text, on which the character models are tested."""

TEST_STREAMS = 64
"""Into how many equal pieces the end of the text is cut; each is read from the zero state."""

_CALIBRATION_WINDOW = 257
_STORY_WINDOW = 512
_STORY_TOKENS = "text/stories260k_tokens.npz"


@dataclass(frozen=True)
class _Text:
    """A text and the weights file whose metadata has its table of characters."""

    text: str
    weights: str


_SHAKESPEARE = _Text("text/shakespeare.txt", "models/lm_charlstm_shakespeare.safetensors")
_BRONTE = _Text("text/charlotte_bronte.txt", "models/lm_charlstm_charlotte_bronte.safetensors")


def charlstm_calibration(*, samples: int | None = 128, batch_size: int = 16) -> Batches:
    """Windows of Tiny Shakespeare spread evenly over all but its last 200,000 characters.

    Args:
        samples: how many windows of 256 characters; None is all there are side by side.
        batch_size: windows in a batch.

    Returns:
        Batches of characters int64 `[batch, 256]` and the characters that follow, int64 `[batch, 256]`.

    Raises:
        WaterfillError: the data are not there, damaged, or fewer than asked for.
    """
    return _character_windows(_SHAKESPEARE, samples, batch_size)


def charlstm_test(*, samples: int | None = None, batch_size: int = TEST_STREAMS) -> Batches:
    """The last 200,000 characters of Tiny Shakespeare in 64 streams of 3,125 characters.

    A row is a whole stream, so that a network which starts each row from the zero state computes what one computes
    that reads the stream piece by piece and carries its state.

    Args:
        samples: how many of the 64 streams; None is all.
        batch_size: streams in a batch.

    Returns:
        Batches of characters int64 `[batch, 3124]` and the characters that follow, int64 `[batch, 3124]`.

    Raises:
        WaterfillError: the data are not there, damaged, or fewer than asked for.
    """
    return _character_streams(_SHAKESPEARE, samples, batch_size)


def charlstm_bronte_calibration(*, samples: int | None = 128, batch_size: int = 16) -> Batches:
    """Windows of the novels of Charlotte Bronte, as in `charlstm_calibration`."""
    return _character_windows(_BRONTE, samples, batch_size)


def charlstm_bronte_test(*, samples: int | None = None, batch_size: int = TEST_STREAMS) -> Batches:
    """The last 200,000 characters of the novels of Charlotte Bronte in 64 streams, as in `charlstm_test`."""
    return _character_streams(_BRONTE, samples, batch_size)


def stories_calibration(*, samples: int | None = 48, batch_size: int = 4) -> Batches:
    """Windows of stories for calibration, from the front of a fixed permutation of the 192 windows.

    Args:
        samples: how many windows of 512 tokens; None is all 192.
        batch_size: windows in a batch.

    Returns:
        Batches of tokens int64 `[batch, 511]` and the tokens that follow, int64 `[batch, 511]`.

    Raises:
        WaterfillError: the data are not there, damaged, or fewer than asked for.
    """
    windows = _story_windows()
    return _next_token(windows[permuted_front(len(windows), samples, _STORY_TOKENS)], _STORY_TOKENS, batch_size)


def stories_test(*, samples: int | None = None, batch_size: int = 16) -> Batches:
    """Windows of stories for testing, from the back of the fixed permutation, by default all 192.

    With at most 144 samples it shares none with `stories_calibration()`. Prepared as there.
    """
    windows = _story_windows()
    return _next_token(windows[permuted_back(len(windows), samples, _STORY_TOKENS)], _STORY_TOKENS, batch_size)


def _character_windows(text: _Text, samples: int | None, batch_size: int) -> Batches:
    windows = _cut(_characters(text)[:-TEST_CHARACTERS], _CALIBRATION_WINDOW, text.text)
    count = checked_count(samples, len(windows), text.text)
    return _next_token(windows[np.arange(count) * len(windows) // count], text.text, batch_size)


def _character_streams(text: _Text, samples: int | None, batch_size: int) -> Batches:
    streams = _cut(_characters(text)[-TEST_CHARACTERS:], TEST_CHARACTERS // TEST_STREAMS, text.text)
    return _next_token(streams[: checked_count(samples, len(streams), text.text)], text.text, batch_size)


def _story_windows() -> NDArray[Any]:
    tokens = read_npz(require_file(_STORY_TOKENS), "tokens")
    return _cut(tokens, _STORY_WINDOW, _STORY_TOKENS)


def _next_token(windows: NDArray[Any], source: str, batch_size: int) -> Batches:
    return Batches(Labelled(windows[:, :-1], windows[:, 1:], source), token_input, batch_size)


def _cut(tokens: NDArray[Any], length: int, source: str) -> NDArray[Any]:
    """Cut into pieces `[pieces, length]`, without what is left over at the end."""
    pieces = len(tokens) // length
    if not pieces:
        raise FormatError(f"{source} is too short: {len(tokens)} tokens here, expected at least {length}.")
    return tokens[: pieces * length].reshape(pieces, length)


def _characters(text: _Text) -> NDArray[Any]:
    return _encode(require_file(text.text), require_file(text.weights))


@cache
def _encode(text: Path, weights: Path) -> NDArray[Any]:
    """Read a text as the numbers that a network has for its characters, once in a process."""
    table = _vocabulary(weights)
    try:
        characters = text.read_bytes().decode("utf-8")
        return frozen(np.fromiter((table[character] for character in characters), np.int16, len(characters)))
    except UnicodeDecodeError as error:
        raise FormatError(f"{text} is damaged or no UTF-8 text ({error}); copy the file again.") from error
    except KeyError as error:
        raise FormatError(
            f"{text} has the character {error}, which is not one of the {len(table)} in the metadata of {weights};"
            " use the text on which the network was trained."
        ) from error


def _vocabulary(weights: Path) -> dict[str, int]:
    try:
        with safetensors.safe_open(weights, framework="numpy") as file:
            table = json.loads((file.metadata() or {})["vocab"])
    except safetensors.SafetensorError as error:
        raise FormatError(f"{weights} is damaged or no safetensors file ({error}); copy it again.") from error
    except (KeyError, json.JSONDecodeError) as error:
        raise FormatError(
            f"{weights} has no table of characters: expected JSON under 'vocab' in its metadata."
        ) from error
    if not isinstance(table, dict) or sorted(map(repr, table.values())) != sorted(map(repr, range(len(table)))):
        raise FormatError(f"The table of characters of {weights} is wrong: expected each of 0, 1, 2, ... once.")
    return table
