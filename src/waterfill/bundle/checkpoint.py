"""The original: a Hugging Face model directory, whose tensors are read when they are asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors
import torch

from waterfill.errors import FormatError, UnsupportedModelError, WaterfillError
from waterfill.file_system import is_file
from waterfill.io.configuration import METHOD, architecture, quantization, read_config, read_object
from waterfill.io.parts import part_of
from waterfill.io.shards import INDEX, TYPES, WHOLE, Place, places


class Checkpoint(Mapping[str, torch.Tensor]):
    """A model directory with `config.json` and safetensors, as a mapping from names to tensors.

    Only headers are read when it is opened; a tensor is read, from a file mapped into memory, each time that it is
    asked for, so that a model may be larger than memory. Names are in natural order: `layers.2` before `layers.10`.

    Attributes:
        directory: where it is.
        config: what `config.json` says.

    Example:
        >>> checkpoint = Checkpoint("Llama-3.2-1B")  # doctest: +SKIP
        >>> checkpoint["model.norm.weight"].dtype  # doctest: +SKIP
        torch.bfloat16
    """

    def __init__(self, directory: str | Path) -> None:
        """Open a directory.

        Raises:
            WaterfillError: there is no such directory, config.json or safetensors file, or one cannot be read.
            FormatError: a shard is missing, damaged, or lacks a tensor that the index names.
            UnsupportedModelError: the model is compressed or quantized already.
        """
        self.directory = Path(directory)
        self.config = read_config(self.directory)
        _check_plain(self.directory, self.config)
        self._places = dict(sorted(_places(self.directory).items(), key=lambda item: natural(item[0])))
        for name, place in self._places.items():
            if place.dtype not in TYPES:
                raise UnsupportedModelError(
                    f"Tensor {name!r} in {place.path} has the type {place.dtype}, not one of PyTorch; convert it first."
                )
            if part_of(name) is not None:
                raise UnsupportedModelError(
                    f"Tensor {name!r} in {place.path} is named as if it were a part of another one; rename it first."
                )

    def __getitem__(self, name: str) -> torch.Tensor:
        place = self._places[name]
        try:
            with safetensors.safe_open(place.path, framework="pt") as file:  # not kept: its pages count as memory
                tensor: torch.Tensor = file.get_tensor(name)
        except (safetensors.SafetensorError, OSError) as error:
            raise FormatError(f"{place.path} cannot be read at tensor {name!r} ({error}). Copy it again.") from error
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, without reading it."""
        return {name: place.shape for name, place in self._places.items()}

    @cached_property
    def dtypes(self) -> dict[str, torch.dtype]:
        """Type of every tensor, without reading it."""
        return {name: getattr(torch, TYPES[place.dtype]) for name, place in self._places.items()}

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(place.size for place in self._places.values())


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts the numbers in names by value."""
    parts = re.split(r"0*([0-9]+)", name)
    return [(len(part) if index % 2 else 0, part) for index, part in enumerate(parts)]


def _check_plain(directory: Path, config: Mapping[str, Any]) -> None:
    found = quantization(config)
    if found is None:
        return
    if found.get("quant_method") == METHOD:
        raise UnsupportedModelError(
            f"Model directory {directory} is compressed already; expected an original. Decompress it first: "
            f"waterfill decompress {directory} -o {directory}-plain"
        )
    raise UnsupportedModelError(
        f"Model directory {directory} is quantized already, by {found.get('quant_method')!r}; expected weights in full "
        "precision. Name the original model."
    )


def _places(directory: Path) -> dict[str, Place]:
    """Where the tensors lie; a directory without safetensors gets the line that makes them."""
    if is_file(directory / WHOLE) or is_file(directory / INDEX):
        return places(directory)
    if is_file(directory / "pytorch_model.bin.index.json"):
        name = architecture(read_object(directory / "config.json"), directory) or "AutoModel"
        raise FormatError(
            f"Model directory {directory} has pickles (pytorch_model-*.bin) instead of safetensors, which can run any "
            "code when they are loaded. Convert it once, in Python in that directory, with transformers imported: "
            f'transformers.{name}.from_pretrained(".").save_pretrained("safetensors")'
        )
    if is_file(directory / "pytorch_model.bin"):
        raise FormatError(
            f"Model directory {directory} has a pickle (pytorch_model.bin) instead of safetensors, which can run any "
            "code when it is loaded. Convert it once, in Python in that directory, with torch and safetensors.torch "
            "imported: safetensors.torch.save_file({name: tensor.clone() for name, tensor in "
            'torch.load("pytorch_model.bin", weights_only=True).items()}, '
            f'"{WHOLE}", {{"format": "pt"}})'
        )
    others = sorted(path.name for path in directory.glob("*.safetensors"))
    if others:
        raise WaterfillError(
            f"Model directory {directory} has {', '.join(others[:3])}, but neither {WHOLE} nor {INDEX}, which "
            "transformers loads. Rename the file, or download the model again."
        )
    return places(directory)
