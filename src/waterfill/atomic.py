"""Write a file whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from waterfill.errors import UsageError, WaterfillError

_MODELS = (
    ".wf", ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".npz", ".h5", ".keras", ".msgpack", ".onnx",
    ".gguf", ".tflite",
)  # fmt: skip
"""Suffixes that say of what kind a model file is."""


def check_suffix(path: Path, written: str) -> None:
    """Refuse the name of a model file of another kind than what is written, which other programs would misread.

    Args:
        path: where to write.
        written: the suffix of what is written.

    Raises:
        UsageError: it has the suffix of another kind.
    """
    found = suffix_of_models(path)
    if found not in (None, written):
        raise UsageError(
            f"Output {path} has the suffix {found} of another kind of model; expected {written}, as that is what is "
            f"written. Name it {path.with_suffix(written)}."
        )


def suffix_of_models(path: Path) -> str | None:
    """The suffix of a path if it is one of model files; None otherwise."""
    found = path.suffix.lower()
    return found if found in _MODELS else None


def check_destination(path: Path, *, force: bool) -> None:
    """Fail early, before any work, when `path` cannot be written.

    Raises:
        WaterfillError: the folder is missing or not writable, `path` is something else than a file, or it exists and
            `force` is False.
    """
    folder = path.resolve().parent
    if path.is_dir():
        raise WaterfillError(f"Output {path} is a folder; expected a file name. Name a file inside it.")
    if path.exists() and not path.is_file():
        raise WaterfillError(f"Output {path} is a device or a pipe, which a file would replace; choose another output.")
    if not folder.is_dir():
        raise WaterfillError(f"Output folder {folder} does not exist; create it or choose another output.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise WaterfillError(
            f"Output folder {folder} is not writable; change its permissions or choose another output."
        )
    if shutil.disk_usage(folder).free == 0:
        raise WaterfillError(f"Output folder {folder} has no space left; free some, or choose another output.")
    if path.exists() and not force:
        raise WaterfillError(f"Output {path} exists and is not overwritten; use --force (force=True) or another name.")


def write_atomically(path: Path, parts: Iterable[bytes], *, force: bool = True) -> None:
    """Write `parts` to `path` by way of a temporary file in the same folder and a rename.

    Args:
        path: where to write.
        parts: the contents, in order.
        force: replace a file that exists; otherwise it is refused.

    Raises:
        WaterfillError: see `check_destination`; also when the disk is full or the write fails. Nothing is left behind
            and an existing file stays as it was.
    """
    check_destination(path, force=force)
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:64]}.", suffix=".part", dir=path.resolve().parent)
    except OSError as error:
        raise WaterfillError(f"Output folder of {path} cannot be written: {error.strerror}.") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        Path(temporary).chmod(0o666 & ~mask)
        Path(temporary).replace(path.resolve())
    except OSError as error:
        raise WaterfillError(f"Writing {path} failed: {error.strerror}; nothing was written.") from error
    finally:
        Path(temporary).unlink(missing_ok=True)
