"""What all results in a work folder depend on, and how two of these differ, in words."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import torch

from waterfill._version import __version__
from waterfill.models.batches import device_of
from waterfill.models.state_dict import load_tensors
from waterfill.resume.description import DIGITS, describe, digest

LIBRARIES = ("torch", "numpy", "numba", "scipy")
"""Libraries whose version can change a result."""

NAMED = 3
"""How many tensors a difference names at most."""


@dataclass(frozen=True)
class Fingerprint:
    """What results depend on, each part as a text that tells it from every other one, see `describe`.

    Attributes:
        versions: of the package and of the libraries.
        options: of the compression, without the target: results are good for any.
        weights: every entry of the state dict.
        data: every batch; none without data.
        outputs: what the model returns on every batch. They tell other code of the model, and other arithmetic.
        circumstances: what can change the arithmetic, by name; they are told where outputs differ, and never count.
    """

    versions: Mapping[str, str]
    options: Mapping[str, str]
    weights: Mapping[str, str]
    data: Sequence[str]
    outputs: Sequence[str]
    circumstances: Mapping[str, str]

    @property
    def digest(self) -> str:
        """64 hexadecimal digits that stand for everything that counts."""
        return digest((self.versions, self.options, self.weights, self.data, self.outputs))

    def to_json(self) -> bytes:
        """As JSON text."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"

    @classmethod
    def from_json(cls, text: bytes) -> Fingerprint | None:
        """Read it; None where the text is none."""
        try:
            return msgspec.json.decode(text, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None

    def differences(self, before: Fingerprint) -> list[str]:
        """What differs from the one before, in words; empty where nothing does."""
        found = [
            *_values(self.versions, before.versions, ""),
            *_values(self.options, before.options, "option "),
            *_tensors(self.weights, before.weights),
            *_batches(self.data, before.data, "data"),
        ]
        if found or self.outputs == before.outputs:
            return found  # other outputs would only follow from these
        changed = [*_values(self.circumstances, before.circumstances, "")] or ["perhaps its code is another one"]
        return [*_batches(self.outputs, before.outputs, "outputs of the model"), *changed]


def fingerprint(
    model: torch.nn.Module | str | Path,
    batches: Iterable[Any],
    outputs: Iterable[torch.Tensor],
    options: Mapping[str, Any],
) -> Fingerprint:
    """Look at everything that results depend on, in one pass over the data.

    Args:
        model: a module, or the path of a safetensors file.
        batches: calibration data; empty for none.
        outputs: of the model on each batch.
        options: by name.

    Raises:
        UsageError: an option is of a class about which nothing can be said, see `describe`.
    """
    device = device_of(model) if isinstance(model, torch.nn.Module) else torch.device("cpu")
    state = model.state_dict() if isinstance(model, torch.nn.Module) else load_tensors(model)
    return of_tensors(state.items(), batches, outputs, options, device)


def of_tensors(
    tensors: Iterable[tuple[str, torch.Tensor]],
    batches: Iterable[Any],
    outputs: Iterable[torch.Tensor],
    options: Mapping[str, Any],
    device: torch.device,
) -> Fingerprint:
    """The same of tensors that are given one after the other, with their names, and need not fit into memory."""
    return Fingerprint(
        versions={"waterfill": _own_version()} | {name: version(name) for name in LIBRARIES},
        options={name: describe(value) for name, value in options.items()},
        weights={name: describe(tensor) for name, tensor in tensors},
        data=[describe(batch) for batch in batches],
        outputs=[describe(output) for output in outputs],
        circumstances={
            "device": str(device),
            "threads of torch": str(torch.get_num_threads()),
            "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        },
    )


def _own_version() -> str:
    """Version of the package with a digest of its code, which differs between two versions that are being worked on."""
    root = Path(__file__).parents[1]
    found = hashlib.sha256()
    for path in sorted((*root.rglob("*.py"), *root.rglob("*.bin"))):
        found.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{__version__} ({found.hexdigest()[:DIGITS]})"


def _values(now: Mapping[str, str], before: Mapping[str, str], what: str) -> Iterator[str]:
    for name in {**now, **before}:
        if now.get(name) != before.get(name):
            yield f"{what}{name} is {now.get(name, 'not there')}, was {before.get(name, 'not there')}"


def _tensors(now: Mapping[str, str], before: Mapping[str, str]) -> Iterator[str]:
    both = [name for name in now if name in before]
    changed = [name for name in both if now[name] != before[name]]
    if changed:
        yield f"weights of {_listed(changed)} differ"
    yield from _which([name for name in now if name not in before], "is new", "are new")
    yield from _which([name for name in before if name not in now], "is missing", "are missing")
    if not changed and both != [name for name in before if name in now]:
        yield "tensors come in another order"


def _batches(now: Sequence[str], before: Sequence[str], what: str) -> Iterator[str]:
    if len(now) != len(before):
        yield f"{what}: {len(now)} batches, were {len(before)}"
        return
    changed = [str(index) for index, pair in enumerate(zip(now, before, strict=True)) if pair[0] != pair[1]]
    yield from (f"{what}: batch {text}" for text in _which(changed, "differs", "differ"))


def _which(names: Sequence[str], one: str, several: str) -> Iterator[str]:
    """What some of them are; nothing where there are none."""
    if names:
        yield f"{_listed(names)} {one if len(names) == 1 else several}"


def _listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"
