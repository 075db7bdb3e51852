"""Model directories on the command line, and the text that they are calibrated and measured on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from waterfill.cli.arguments import Loss
from waterfill.cli.factories import FACTORY, as_data, as_model, as_module, as_stream
from waterfill.cli.output import check_apart, check_outputs, is_first, show, write_json
from waterfill.errors import UsageError
from waterfill.file_system import is_file, is_folder

if TYPE_CHECKING:
    from torch import nn

LENGTH = 512
"""Tokens of a window or a sentence, where the model takes so many."""

_LENGTH_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length")


@dataclass(frozen=True)
class Sampling:
    """How much of a text is read.

    Attributes:
        length: tokens of a window or a sentence at most; None for `LENGTH`, or what the model takes if that is less.
        count: windows or sentences.
        seed: chooses them.
    """

    length: int | None = None
    count: int = 128
    seed: int = 0


def compress_directory(
    directory: Path,
    out: Path,
    data: str | None,
    refused: dict[str, Any],
    sampling: Sampling,
    loss: Loss,
    json_file: Path | None,
    **options: Any,
) -> None:
    """Compress a model directory to another one, and tell the result in the first process.

    Args:
        directory: the original.
        out: the directory to write.
        data: of `--data`.
        refused: values of options that are for files alone, by option; None where one was not given.
        sampling: how much of a text is read.
        loss: of `--tolerance` and `--metric`.
        json_file: of `--json`.
        options: of `waterfill.compress_directory`.

    Raises:
        UsageError: an option for files was given.
    """
    from waterfill.compression.api import compress_directory as run
    from waterfill.compression.memory import estimate_memory
    from waterfill.io.folder import check_folder
    from waterfill.progress import progress_bar
    from waterfill.report.text import result_table

    given = [name for name, value in refused.items() if value is not None]
    if given:
        raise UsageError(
            f"{given[0]} is not for model directories, which say themselves what they are; leave it out, or compress a "
            "factory."
        )
    check_outputs(None, json_file, force=True, inputs=(directory,))
    check_apart(out, json_file, "a folder and a file")
    check_folder(out, source=directory, force=bool(options["force"]))
    batches = None if data is None else as_text_data(data, directory, sampling)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if is_first():
        mine = None if batches is None else batches[::processes]
        show(f"{directory}: {estimate_memory(directory, mine)}" + (" in each process" if processes > 1 else ""))
    tolerance = loss.amount(directory, batches, None)
    with progress_bar(is_first()) as progress:
        result = run(directory, out, batches, tolerance=tolerance, progress=progress, **options)
    if is_first():
        write_json(json_file, result.to_json())
        show(result_table(result, str(out), loss.what))


def model_and_batches(model: str, weights: Path | None, data: str | None, sampling: Sampling) -> tuple[Any, Any]:
    """What MODEL and `--data` name: a module or the path of a file or directory, and batches or None.

    Raises:
        UsageError: `--weights` came with a directory, or one of them is nothing that is known.
    """
    if _is_directory(model, weights):
        return Path(model), None if data is None else as_text_data(data, Path(model), sampling)
    return as_model(model, weights), None if data is None else as_data(data)


def decompress_directory(directory: Path, out: Path, *, force: bool, max_bytes: int) -> None:
    """Make a compressed model directory an ordinary one."""
    from waterfill.io.directory import ArrayDirectory
    from waterfill.io.plain import write_plain

    with ArrayDirectory(directory, max_bytes=max_bytes) as bundle:
        size = write_plain(bundle, out, force=force)
        show(f"{out}: {len(bundle)} tensors, {size:,} bytes")


def inspect_directory(directory: Path, json_file: Path | None, max_bytes: int) -> None:
    """Check a compressed model directory and show what is in it."""
    from waterfill.io.directory import ArrayDirectory
    from waterfill.report.directory import bundle_summary, bundle_table

    with ArrayDirectory(directory, max_bytes=max_bytes) as bundle:
        bundle.verify()
        summary = bundle_summary(str(directory), bundle)
    write_json(json_file, json.dumps(summary, indent=1))
    show(bundle_table(summary))


def is_text(data: str) -> bool:
    """Whether the text of `--data` names a file and no factory."""
    return FACTORY.fullmatch(data) is None


def as_text_data(data: str, directory: Path, sampling: Sampling | None = None) -> Sequence[Any]:
    """Batches for the model of a directory, from `--data`; the model is not read for it.

    Args:
        data: a file as in `waterfill.text_batches`, or `package.module:factory`.
        directory: model directory with the tokenizer. Models that predict the next token get windows, all others
            sentences with the special tokens.
        sampling: how much of a text.

    Returns:
        Batches that can be iterated over again.

    Raises:
        CalibrationError: the text is too short, or its tokens are not in the model's vocabulary.
        UsageError: the length is not one that the model takes.
        WaterfillError: a file or the tokenizer is missing or cannot be read.
    """
    if not is_text(data):
        return as_data(data)
    from waterfill.io.configuration import read_object
    from waterfill.models.language import check_vocabulary
    from waterfill.text import sentence_batches, text_batches

    asked = sampling or Sampling()
    config = read_object(directory / "config.json")
    tokenizer = None if Path(data).suffix == ".npz" else directory
    read = text_batches if reads_windows(directory) else sentence_batches
    length = _length(asked.length, _longest(directory, config), directory)
    batches = read(Path(data), tokenizer, length=length, count=asked.count, seed=asked.seed)
    for index, batch in enumerate(batches):
        check_vocabulary(batch, _smallest(config, ("vocab_size",)), index)
    return batches


def reads_windows(directory: Path) -> bool:
    """Whether the model of a directory predicts the next token of a text, told by its class alone."""
    from waterfill.models.language import predicts_next
    from waterfill.models.pretrained import model_class

    kind = model_class(directory)
    # AutoModel, which reads those that are pooled, has none
    return hasattr(kind, "can_generate") and predicts_next(kind)


def read_model(directory: Path) -> nn.Module:
    """Read the model of a directory."""
    from waterfill.models.pretrained import load_pretrained

    return load_pretrained(directory)


def measured_model(text: str, weights: Path | None) -> nn.Module:
    """The module of MODEL: that of a directory, or of a factory.

    Raises:
        UsageError: `--weights` came with a directory, or MODEL is neither.
    """
    return read_model(Path(text)) if _is_directory(text, weights) else as_module(text, weights)


def _is_directory(model: str, weights: Path | None) -> bool:
    if not is_folder(Path(model)):
        return False
    if weights is not None:
        raise UsageError(f"--weights fills a factory, but MODEL is the directory {model}; leave --weights out.")
    return True


def measured_batches(data: str, model: str, sampling: Sampling) -> Iterable[Any]:
    """Batches of `--data` for MODEL: text only for a directory, which has the tokenizer.

    Raises:
        UsageError: `--data` is a file, but MODEL is a factory.
    """
    if is_folder(Path(model)):
        return as_text_data(data, Path(model), sampling) if is_text(data) else as_stream(data)
    if is_text(data) and is_file(Path(data)):
        raise UsageError(
            f"--data {data} is a file, but MODEL {model} is no directory with a tokenizer; expected "
            "package.module:factory. Write one that returns waterfill.text_batches(file, tokenizer)."
        )
    return as_stream(data)


def compared(file: Path, network: nn.Module, max_bytes: int) -> nn.Module:
    """The model of a compressed directory or file, beside that of MODEL."""
    from waterfill.bundle import Bundle
    from waterfill.files import load
    from waterfill.io.directory import is_bundle
    from waterfill.models.embedder import Embedder

    if is_folder(file):
        if is_bundle(file):
            Bundle(file, max_bytes=max_bytes).close()
        return read_model(file)
    copy = deepcopy(network)
    load(file, into=copy.model if isinstance(copy, Embedder) else copy, max_bytes=max_bytes)
    return copy


def size_of(path: Path) -> int:
    """Bytes of a file, or of the weight files of a model directory."""
    if is_file(path):
        return path.stat().st_size
    patterns = ("waterfill*.safetensors", "model*.safetensors", "pytorch_model*.bin")
    files: list[Path] = next(filter(None, ([*path.glob(pattern)] for pattern in patterns)), [])
    return sum(file.stat().st_size for file in files)


def _length(asked: int | None, longest: int | None, directory: Path) -> int:
    if asked is None:
        return LENGTH if longest is None else min(LENGTH, longest)
    if longest is not None and asked > longest:
        raise UsageError(f"--length {asked} is more than the {longest} tokens that {directory} takes; ask for less.")
    return asked


def _longest(directory: Path, config: Mapping[str, Any]) -> int | None:
    """Most tokens that a model says it takes."""
    from waterfill.io.configuration import read_object

    sentences = directory / "sentence_bert_config.json"
    asked = _smallest(read_object(sentences), ("max_seq_length",)) if is_file(sentences) else None
    limits = [limit for limit in (asked, _smallest(config, _LENGTH_KEYS)) if limit is not None]
    return min(limits, default=None)


def _smallest(config: Mapping[str, Any], keys: Sequence[str]) -> int | None:
    """Smallest of the numbers that a configuration, or that of its language model, has under these keys."""
    inner = config.get("text_config")
    parts = (config, inner if isinstance(inner, dict) else {})
    found = [part[key] for part in parts for key in keys if isinstance(part.get(key), int)]
    return min((number for number in found if number > 0), default=None)
