"""Read a compressed directory into tensors of PyTorch, tensor by tensor or group by group."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from waterfill.codec.opened import FilePart
from waterfill.devices import has_kernels
from waterfill.files import WaterfillFile
from waterfill.io import arrays
from waterfill.io.directory import DirectoryReader
from waterfill.io.parts import Part, Piece
from waterfill.models.arrays import array_of, tensor_of


class Bundle(DirectoryReader[Tensor]):
    """An open compressed directory, as a mapping from names of the original checkpoint to tensors.

    The configuration, the headers of shards and the directories of all payloads are checked when it is opened; a chunk
    is read, checked and decoded when a tensor in it is asked for. Several threads may read at once.

    Attributes:
        directory: where it is.
        config: what `config.json` says.
        description: what its `quantization_config` says of groups and ties.

    Example:
        >>> with Bundle("small") as bundle:  # doctest: +SKIP
        ...     for name in bundle.groups:
        ...         tensors = bundle.group(name)
    """

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """Type of every tensor, without decoding it."""
        return {name: getattr(torch, dtype) for name, dtype in self.types.items()}

    def decode(self, names: Collection[str], device: torch.device | None = None) -> dict[str, Tensor]:
        """Decode some tensors, each payload once; tied ones are one tensor.

        Args:
            names: which.
            device: where they are to be, and are decoded if it can do that; by default the processor.

        Raises:
            KeyError: there is no such tensor.
            FormatError: a payload is damaged.
        """
        there = device if has_kernels(device) else None

        def empty(shape: tuple[int, ...], dtype: str) -> Tensor:
            if there is None:
                return self._empty(shape, dtype)
            return torch.empty(shape, dtype=getattr(torch, dtype), device=there)

        def is_placed(group: str, piece: Piece) -> bool:
            return piece.part is not None or (there is not None and self._files[group].has_lanes(piece.entry))

        found = self._decoded(names, empty, is_placed)
        if device is not None:
            found = {name: tensor.to(device) for name, tensor in found.items()}
        return {name: found[self._original(name).name] for name in names}

    def _file(self, payload: FilePart, label: str, threads: int | None, max_bytes: int | None) -> WaterfillFile:
        return WaterfillFile(payload, threads=threads, label=label, max_bytes=max_bytes)

    def _empty(self, shape: tuple[int, ...], dtype: str) -> Tensor:
        return tensor_of(arrays.empty(shape, dtype))

    @staticmethod
    def _part(whole: Tensor, part: Part | None) -> Tensor:
        return whole if part is None else whole[part.rows]

    @staticmethod
    def _copy(source: Tensor, into: Tensor) -> None:
        into.copy_(source)

    @staticmethod
    def elements(tensor: Tensor) -> memoryview:
        """The bytes of a tensor in row-major order, without a copy where they lie so."""
        return array_of(tensor.contiguous()).elements()
