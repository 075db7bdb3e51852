"""Where text comes from: files and iterables, read piece by piece."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from waterfill.errors import CalibrationError, FormatError, UsageError, WaterfillError

_BLOCK = 2**20
"""Characters that are tokenized at once."""

_LONGEST_PATH = 4096

_ARRAYS = ("input_ids", "tokens")
"""Names of the array of tokens in an .npz file that has several."""


def _lines_of(path: Path) -> Iterator[str]:
    """Lines of a text file with their line ends; of a .jsonl file what each line has as its text.

    Raises:
        FormatError: it is not UTF-8, or a line is not such an object.
    """
    number = 0
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                number += 1
                if path.suffix != ".jsonl":
                    yield line
                elif line.strip():
                    yield _text_of(line) + "\n"
    except UnicodeDecodeError as error:
        raise FormatError(
            f"{path} is no UTF-8 text (after line {number}: {error.reason}); expected plain text. Convert the file."
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise FormatError(
            f"Line {number} of {path} is no JSON object with a string 'text'; write one object a line."
        ) from error


def _text_of(line: str) -> str:
    text = json.loads(line)["text"]
    if not isinstance(text, str):
        raise TypeError("text is no string")
    return text


def blocks(pieces: Iterable[str]) -> Iterator[str]:
    """The same text in longer pieces: tokens may be cut only where these meet."""
    held: list[str] = []
    size = 0
    for piece in pieces:
        if not isinstance(piece, str):
            raise UsageError(
                f"A piece of the text is a {type(piece).__name__}; expected strings only. Give such a list."
            )
        held.append(piece)
        size += len(piece)
        if size >= _BLOCK:
            yield "".join(held)
            held, size = [], 0
    if held:
        yield "".join(held)


def _array_of(path: Path) -> NDArray[Any]:
    """The array of tokens in an .npz file: the only one, or that named `input_ids` or `tokens`.

    Raises:
        FormatError: it is damaged, or has no such array of integers.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            names = list(file.files)
            chosen = names if len(names) == 1 else [name for name in _ARRAYS if name in names]
            found = file[chosen[0]] if chosen else np.empty(0)
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise FormatError(f"{path} is damaged or no .npz file ({error}); write it with numpy.savez.") from error
    if found.dtype.kind not in "iu" or found.ndim not in (1, 2):
        raise FormatError(
            f"{path} has {', '.join(names) or 'nothing'}; expected integers 'input_ids' or 'tokens' with one axis (a "
            "stream) or two (windows). Write such an array."
        )
    return found


@dataclass(frozen=True)
class Source:
    """What a caller gave as text.

    Attributes:
        kind: whether the items are pieces of text, sequences of token numbers, or batches that are ready.
        items: they, to be gone through once.
        name: what errors call it.
    """

    kind: Literal["text", "tokens", "batches"]
    items: Iterable[Any]
    name: str = "The data"


def opened(source: Any, batch_size: int) -> Source:
    """Tell what a source is, by its type and its first item.

    Args:
        source: the path of a text, a .jsonl or an .npz file, or an iterable of strings, of sequences of token numbers,
            or of batches.
        batch_size: rows of a batch, where a file has windows.

    Raises:
        UsageError: it is none of these.
        WaterfillError: there is no such file.
    """
    if isinstance(source, str | Path):
        return _opened_file(_path_of(source), batch_size)
    if not isinstance(source, Iterable) or isinstance(source, Mapping) or hasattr(source, "shape"):
        raise UsageError(
            f"Text is a {type(source).__name__}; expected the path of a file, or an iterable of strings, of sequences "
            "of token ids, or of batches. Give a list: [it]."
        )
    items = iter(source)
    first = next(items, None)
    if first is None:
        raise CalibrationError("The text is empty; expected strings, sequences of token ids, or batches. Give some.")
    kind: Literal["text", "tokens", "batches"] = "tokens" if _is_tokens(first) else "batches"
    return Source("text" if isinstance(first, str) else kind, chain([first], items))


def _path_of(source: str | Path) -> Path:
    if isinstance(source, str) and ("\n" in source or len(source) > _LONGEST_PATH):
        raise UsageError(
            f"Text is a string of {len(source):,} characters, which is read as a path; expected one, or a list of "
            "strings. Give [text]."
        )
    path = Path(source)
    if not path.is_file():
        raise WaterfillError(f"{path} is no file that exists; expected UTF-8 text, .jsonl or .npz. Check the path.")
    return path


def _opened_file(path: Path, batch_size: int) -> Source:
    if path.suffix != ".npz":
        return Source("text", _lines_of(path), str(path))
    array = _array_of(path)
    if array.ndim == 1:
        return Source("tokens", [array], str(path))
    return Source("batches", torch.split(torch.from_numpy(array.astype(np.int64)), batch_size), str(path))


def _is_tokens(item: Any) -> bool:
    """Whether an item of an iterable is one sequence of token numbers."""
    if hasattr(item, "shape"):
        return len(item.shape) == 1
    return isinstance(item, list | tuple) and all(isinstance(each, int) for each in item)
