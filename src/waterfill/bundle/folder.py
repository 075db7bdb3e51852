"""Write a directory whole or not at all, and take along what belongs to a model besides its weights."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from waterfill.atomic import suffix_of_models
from waterfill.errors import UsageError, WaterfillError

_WEIGHTS = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".onnx_data", ".gguf", ".ot", ".tflite",
    ".safetensors.index.json", ".bin.index.json", ".h5.index.json", ".msgpack.index.json",
)  # fmt: skip
_OTHER_RUNTIMES = ("onnx", "openvino", "coreml", "gguf", "original")
_SMALL_SUFFIXES = (".json", ".txt", ".jinja", ".model")
_SMALL_BYTES = 1 << 24


class NewFolder:
    """A directory that is written beside its place and moved there at the end.

    On an exception, and without `commit`, nothing is left and what was there stays.

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
            WaterfillError: it exists, and `force` is False or it is no model directory; or its parent is missing or
                cannot be written.
        """
        self._out, self._force = out.resolve(), force
        check_folder(self._out, source=source, force=force)
        self.path = self._out

    def __enter__(self) -> Self:
        try:
            name = tempfile.mkdtemp(prefix=f".{self._out.name[:64]}.", suffix=".part", dir=self._out.parent)
        except OSError as error:
            raise WaterfillError(f"Output folder of {self._out} cannot be written: {error.strerror}.") from error
        self.path = Path(name)
        return self

    def __exit__(self, *_: object) -> None:
        if self.path != self._out:
            shutil.rmtree(self.path, ignore_errors=True)

    def commit(self) -> None:
        """Move the directory to its place, and remove what was there.

        Raises:
            WaterfillError: it cannot be moved; what was there is back.
        """
        mask = os.umask(0)
        os.umask(mask)
        self.path.chmod(0o777 & ~mask)
        before = self.path.with_suffix(".before")
        try:
            if self._out.exists():
                self._out.rename(before)
            self.path.rename(self._out)
        except BaseException as error:  # a key press between the two renames, too
            if before.exists() and not self._out.exists():
                before.rename(self._out)
            if isinstance(error, OSError):
                raise WaterfillError(f"Writing {self._out} failed: {error.strerror}; nothing was written.") from error
            raise
        shutil.rmtree(before, ignore_errors=True)


def check_folder(out: Path, *, source: Path, force: bool) -> None:
    """Fail early, before any work, when a directory cannot be written at `out`; see `NewFolder`."""
    if suffix_of_models(out) not in (None, ".wf"):
        raise UsageError(
            f"Output {out} has the suffix of a model file, but a directory is written; name it {out.with_suffix('')}."
        )
    read, place = source.resolve(), out.resolve()
    if read == place or place in read.parents:
        raise UsageError(f"Output {out} holds the input {source}, which would be replaced; choose another output.")
    if out.exists() and not out.is_dir():
        raise WaterfillError(f"Output {out} is a file; expected a directory to write. Choose another output.")
    filled = out.is_dir() and any(out.iterdir())
    if filled and not (out / "config.json").is_file():
        raise WaterfillError(f"Output {out} is no model directory and is never replaced; choose another output.")
    if filled and not force:
        raise WaterfillError(f"Output {out} exists and is not overwritten; use --force (force=True) or another name.")
    parent = place.parent
    if not parent.is_dir():
        raise WaterfillError(f"Output folder {parent} does not exist; create it or choose another output.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise WaterfillError(
            f"Output folder {parent} is not writable; change its permissions or choose another output."
        )


def copy_companions(source: Path, target: Path) -> list[str]:
    """Copy what belongs to a model besides weights and `config.json`: tokenizer, generation settings, licence.

    Small texts of subfolders come along, and whole the subfolders that a `modules.json` names (the layers that
    sentence-transformers puts after a network); weights for other runtimes do not.

    Returns:
        The names of the files, relative to `source`.
    """
    modules = _modules(source)
    copied = []
    for path in sorted(source.iterdir()):
        if path.name.startswith(".") or path.name == "config.json":
            continue
        if path.is_file() and not path.name.endswith(_WEIGHTS):
            copied.append(path.relative_to(source))
        elif path.is_dir() and path.name not in _OTHER_RUNTIMES:
            copied += [each.relative_to(source) for each in _inside(path, whole=path.name in modules)]
    for name in copied:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)
    return [str(name) for name in copied]


def _modules(source: Path) -> set[str]:
    """Subfolders that a `modules.json` of sentence-transformers names."""
    try:
        listed = json.loads((source / "modules.json").read_bytes())
        return {Path(module["path"]).parts[0] for module in listed if module.get("path")}
    except (OSError, ValueError, TypeError, AttributeError, KeyError, IndexError):
        return set()


def _inside(folder: Path, *, whole: bool) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        small = path.suffix in _SMALL_SUFFIXES and path.stat().st_size <= _SMALL_BYTES
        if whole or (small and not path.name.endswith(_WEIGHTS)):
            yield path
