"""Write a directory whole or not at all, and take along what belongs to a model besides its weights."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from waterfill.atomic import appeared, resolved, suffix_of_models
from waterfill.errors import UsageError, WaterfillError
from waterfill.file_system import DISK, is_file, is_folder
from waterfill.io.configuration import inside
from waterfill.temporary import Lock, locked, remove_leftovers, set_aside_path, temporary_path

_WEIGHTS = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".onnx_data", ".gguf", ".ot", ".tflite",
    ".safetensors.index.json", ".bin.index.json", ".h5.index.json", ".msgpack.index.json",
)  # fmt: skip
_OTHER_RUNTIMES = ("onnx", "openvino", "coreml", "gguf", "original")
_SMALL_SUFFIXES = (".json", ".txt", ".jinja", ".model")
_SMALL_BYTES = 1 << 24
_OCCUPIED = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)
"""What a rename says whose target is there."""


class NewFolder:
    """A directory that is written beside its place and moved there at the end.

    On an exception, and without `commit`, nothing is left and what was there stays. What a killed process has left
    beside the same place is removed on entry.

    Attributes:
        path: where to write meanwhile.
    """

    def __init__(self, out: Path, *, source: Path, force: bool) -> None:
        """Check the destination; the directory is made on entry.

        Args:
            out: where it is to be in the end.
            source: what is read meanwhile, and so must not be replaced.
            force: replace a model directory that exists.

        Raises:
            UsageError: it would replace what is read.
            FormatError: a file that belongs to the model is a link out of `source`.
            WaterfillError: it exists, and `force` is False or it is no model directory; or its parent is missing or
                cannot be written.
        """
        self._out, self._source, self._force = resolved(out), source, force
        check_folder(self._out, source=source, force=force)
        companions(source)  # which are copied at the end: links out of it are refused before any work
        self._replaces_empty = False
        self._lock: Lock | None = None
        self.path = self._out

    def __enter__(self) -> Self:
        try:
            remove_leftovers(self._out)
            check_folder(self._out, source=self._source, force=self._force)  # for an old one may have come back
            self._replaces_empty = is_folder(self._out) and not any(self._out.iterdir())
            while self._lock is None:
                self.path = temporary_path(self._out)
                self._lock = self._made()
        except OSError as error:
            raise WaterfillError(f"Output folder of {self._out} cannot be written: {error.strerror}.") from error
        return self

    def _made(self) -> Lock | None:
        """Make the directory and lock it; None where another process took it for a leftover."""
        try:
            DISK.make_folder(self.path)
            return locked(self.path)
        except BaseException:  # a key press, too
            DISK.remove_folder(self.path)
            raise

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            DISK.remove_folder(self.path)
            self._lock.release()
            self._lock = None

    def commit(self) -> None:
        """Move the directory to its place, where it survives a power cut from then on, and remove what was there.

        Raises:
            WaterfillError: something has appeared there meanwhile, or it cannot be moved; what is there stays.
        """
        try:
            for path in (*self.path.rglob("*"), self.path):
                DISK.sync_path(path)
            self._move()
            DISK.sync_path(self._out.parent)
        except OSError as error:
            if error.errno in _OCCUPIED:
                raise appeared(self._out) from error
            raise WaterfillError(f"Writing {self._out} failed: {error.strerror}; nothing was written.") from error

    def _move(self) -> None:
        """Rename the directory to its place, or exchange it for the one that is there."""
        if self._force and os.path.lexists(self._out):
            check_folder(self._out, source=self._source, force=True)
            self._exchange()
        elif self._replaces_empty and is_folder(self._out):
            DISK.replace(self.path, self._out)
        else:
            DISK.rename_new(self.path, self._out)

    def _exchange(self) -> None:
        """Exchange the directory for the one that is there, at once where it is possible; on exit that is removed."""
        if DISK.exchange(self.path, self._out):
            return
        before = set_aside_path(self.path)
        aside = locked(self._out)
        try:
            DISK.rename_new(self._out, before)
            DISK.rename_new(self.path, self._out)
        except BaseException:  # a key press between the two renames, too
            if before.exists() and not self._out.exists():
                DISK.rename_new(before, self._out)
            raise
        finally:
            if aside is not None:
                aside.release()
        DISK.rename_new(before, self.path)


def check_folder(out: Path, *, source: Path, force: bool) -> None:
    """Fail early, before any work, when a directory cannot be written at `out`; see `NewFolder`."""
    if suffix_of_models(out) not in (None, ".wf"):
        raise UsageError(
            f"Output {out} has the suffix of a model file, but a directory is written; name it {out.with_suffix('')}."
        )
    read, place = resolved(source), resolved(out)
    if read == place or place in read.parents:
        raise UsageError(f"Output {out} holds the input {source}, which would be replaced; choose another output.")
    if out.exists() and not is_folder(out):
        raise WaterfillError(f"Output {out} is a file; expected a directory to write. Choose another output.")
    filled = is_folder(out) and any(out.iterdir())
    if filled and not is_file(out / "config.json"):
        raise WaterfillError(f"Output {out} is no model directory and is never replaced; choose another output.")
    if filled and not force:
        raise WaterfillError(f"Output {out} exists and is not overwritten; use --force (force=True) or another name.")
    parent = place.parent
    if not is_folder(parent):
        raise WaterfillError(f"Output folder {parent} does not exist; create it or choose another output.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise WaterfillError(
            f"Output folder {parent} is not writable; change its permissions or choose another output."
        )


def companions(source: Path) -> list[Path]:
    """What belongs to a model besides weights and `config.json`: tokenizer, generation settings, licence.

    Small texts of subfolders belong to it, and whole the subfolders that a `modules.json` names (the layers that
    sentence-transformers puts after a network); weights for other runtimes do not.

    Returns:
        The files, relative to `source`.

    Raises:
        FormatError: one is a link out of `source`.
    """
    modules = _modules(source)
    found: list[Path] = []
    for path in sorted(source.iterdir()):
        if path.name.startswith(".") or path.name == "config.json":
            continue
        if is_file(path) and not path.name.endswith(_WEIGHTS):
            found.append(inside(path, source))
        elif is_folder(path) and path.name not in _OTHER_RUNTIMES:
            found += [inside(each, source) for each in _texts(inside(path, source), whole=path.name in modules)]
    return [path.relative_to(source) for path in found]


def copy_companions(source: Path, target: Path) -> None:
    """Copy what belongs to a model besides weights and `config.json`, see `companions`.

    Raises:
        FormatError: a file is a link out of `source`.
        OSError: one cannot be copied.
    """
    for name in companions(source):
        DISK.copy(source / name, target / name)


def _modules(source: Path) -> set[str]:
    """Subfolders that a `modules.json` of sentence-transformers names."""
    try:
        listed = json.loads((source / "modules.json").read_bytes())
        return {Path(module["path"]).parts[0] for module in listed if module.get("path")}
    except (OSError, ValueError, TypeError, AttributeError, KeyError, IndexError):
        return set()


def _texts(folder: Path, *, whole: bool) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if not is_file(path) or any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        small = path.suffix in _SMALL_SUFFIXES and path.stat().st_size <= _SMALL_BYTES
        if whole or (small and not path.name.endswith(_WEIGHTS)):
            yield path
