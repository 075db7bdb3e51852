"""Write a file whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from waterfill.errors import UsageError, WaterfillError
from waterfill.file_system import DISK
from waterfill.temporary import Lock, locked, remove_leftovers, temporary_path

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


def resolved(path: Path) -> Path:
    """Where a path leads, behind all links; what is there need not exist.

    Raises:
        WaterfillError: it is a link that leads to itself, or no name that the system takes.
    """
    try:
        found = path.resolve()
        found.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except RuntimeError as error:
        raise WaterfillError(f"{path} is a link that leads to itself; choose another path.") from error
    except (OSError, ValueError) as error:
        cause = error.strerror if isinstance(error, OSError) else error
        raise WaterfillError(
            f"{str(path)[:200]!r} is no path that can be used ({cause}); choose another one."
        ) from error
    return found


def appeared(out: Path) -> WaterfillError:
    """The error for an output that was not there when the work began."""
    return WaterfillError(
        f"Output {out} has appeared meanwhile and is kept: another program or another run made it. Nothing was "
        "written; use --force (force=True) or another name."
    )


def check_destination(path: Path, *, force: bool) -> None:
    """Fail early, before any work, when `path` cannot be written.

    Raises:
        WaterfillError: the folder is missing or not writable, `path` is something else than a file, or it exists and
            `force` is False.
    """
    folder = resolved(path).parent
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


def write_atomically(path: Path, parts: Iterable[bytes | memoryview], *, force: bool = True) -> None:
    """Write `parts` to `path` by way of a temporary file in the same folder and a rename.

    Both are on the disk when this returns. Temporary files of the same output that a killed process has left are
    removed before.

    Args:
        path: where to write.
        parts: the contents, in order.
        force: replace a file that exists; otherwise it is refused, also when it appears meanwhile.

    Raises:
        WaterfillError: see `check_destination`; also when the disk is full or the write fails. Nothing is left behind
            and an existing file stays as it was.
    """
    check_destination(path, force=force)
    out = resolved(path)
    try:
        remove_leftovers(out)
    except OSError as error:
        raise WaterfillError(f"Output folder of {path} cannot be read: {error.strerror}.") from error
    write_file(out, parts, force=force)
    DISK.sync_path(out.parent)


def write_file(path: Path, parts: Iterable[bytes | memoryview], *, force: bool = True) -> None:
    """Write as `write_atomically` does, without a look at what others have left in the folder, or a name on the disk.

    Raises:
        WaterfillError: writing failed; nothing is left.
    """
    try:
        file, lock = _temporary_file(path)
    except OSError as error:
        raise WaterfillError(f"Output folder of {path} cannot be written: {error.strerror}.") from error
    try:
        with file:
            for part in parts:
                DISK.write(file, part)
            DISK.sync(file)
        (DISK.replace if force else DISK.rename_new)(lock.path, path)
    except FileExistsError as error:
        raise appeared(path) from error
    except OSError as error:
        raise WaterfillError(f"Writing {path} failed: {error.strerror}; nothing was written.") from error
    finally:
        DISK.remove_file(lock.path)
        lock.release()


def _temporary_file(path: Path) -> tuple[BinaryIO, Lock]:
    """A new locked file beside a path, open to be written."""
    while True:
        file = DISK.make_file(temporary_path(path))
        try:
            lock = locked(Path(file.name))
        except BaseException:  # a key press, too
            file.close()
            DISK.remove_file(Path(file.name))
            raise
        if lock is not None:
            return file, lock
        file.close()
