"""Read a compressed file into tensors of PyTorch: lazily, tensor by tensor, or all of it into a model."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from waterfill.codec.trellis import path_model
from waterfill.devices import has_kernels
from waterfill.io.arrays import TypedArray
from waterfill.io.file import FileReader, Place
from waterfill.io.targets import Target, check_place, is_plain, target_of
from waterfill.models.arrays import array_of, dtype_name, tensor_of
from waterfill.models.torch_module import fill
from waterfill.records import Basis, Entry, Layout, Uniform
from waterfill.targets import LaneStream, OnDevice


def open(path: str | Path, *, threads: int | None = None, max_bytes: int | None = None) -> WaterfillFile:
    """Open a file without decoding it; see `WaterfillFile`.

    Raises:
        FormatError: the file cannot be read, is damaged, is no waterfill file, or its tensors take too many bytes.
    """
    return WaterfillFile(path, threads=threads, max_bytes=max_bytes)


def decompress(path: str | Path, *, threads: int | None = None, max_bytes: int | None = None) -> dict[str, Tensor]:
    """All tensors of a file by name, in the order of the state dict; tied ones are one tensor.

    The whole file is checked before anything is decoded.

    Raises:
        FormatError: the file cannot be read, is damaged, is no waterfill file, or its tensors take too many bytes.
    """
    with WaterfillFile(path, threads=threads, max_bytes=max_bytes) as file:
        file.fetch()
        return dict(file.tensors())


def load(
    path: str | Path, into: torch.nn.Module, *, threads: int | None = None, max_bytes: int | None = None
) -> torch.nn.Module:
    """Fill a model with the tensors of a file, in place; names and shapes must be the same.

    Args:
        path: the file.
        into: the model. Nothing in it is changed when anything is wrong.
        threads: how many threads decode.
        max_bytes: most bytes that the tensors may take when decoded.

    Returns:
        The model.

    Raises:
        FormatError: the file cannot be read, is damaged, or is no waterfill file.
        WaterfillError: names or shapes differ.
    """
    fill(into, decompress(path, threads=threads, max_bytes=max_bytes))
    return into


class WaterfillFile(FileReader[Tensor]):
    """An open `.wf` file as a mapping from names to tensors.

    Header and directory are checked when it is opened; a chunk is read, checked and decoded when a tensor in it is
    asked for; the symbols of one that several small tensors share stay until another is read. `tensors()` decodes the
    whole file in order with bounded memory and in parallel.

    Example:
        >>> with waterfill.open("model.wf") as file:  # doctest: +SKIP
        ...     print(file["layer1.0.conv1.weight"].shape)
    """

    def _made(self, values: TypedArray) -> Tensor:
        return tensor_of(values)

    def _place(self, entry: Entry, tensor: Tensor) -> TypedArray | None:
        check_place(entry, dtype_name(tensor.dtype), tuple(tensor.shape), tensor.is_contiguous())
        return None if is_elsewhere(tensor) else array_of(tensor)

    def _target(self, entry: Entry, layout: Layout, basis: Basis | None, into: Tensor | None) -> Target:
        if into is None or not is_plain(entry, layout, basis):
            return target_of(entry, layout, basis)
        if is_elsewhere(into):
            return OnDevice(into, layout)
        return target_of(entry, layout, basis, array_of(into), into)

    def _put_stream(self, chunk: int, place: Place, target: Target) -> bool:
        """Leave the stream of a chunk to a device with kernels, where its tensor is and it is a path with lanes."""
        if not isinstance(target, OnDevice) or not has_kernels(target.device) or not self.has_lanes(place.name):
            return False
        (rule, spread), layout = self.container.rules[place.name], self.container.layouts[place.name]
        coded = path_model(spread, layout, place.start, place.stop)
        assert isinstance(rule, Uniform)  # a path has no other one
        stream = LaneStream(self.container.chunk(chunk), coded, place.start, f"{self.container.name}: {place.name!r}")
        target.put_stream(stream, rule, spread.down)
        return True


def is_elsewhere(tensor: Tensor) -> bool:
    """Whether a tensor is on a device, and not on the processor."""
    return tensor.device.type != "cpu"
