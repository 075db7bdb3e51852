"""Where the networks of `walk_cases.py` are, and how they are compressed and read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

import minilm
import waterfill

Pair = tuple[nn.Module, nn.Module]
Options = Mapping[str, Any]


class Source(Protocol):
    """A network and the call that compresses it."""

    def prepare(self, sources: Path) -> None:
        """Write what has to be there before a process can compress the network."""

    def load(self, sources: Path) -> Any:
        """Make ready what is compressed; its seconds do not count."""

    def compress(self, ready: Any, data: Any, out: Path, options: Options) -> Any:
        """Write the compressed network under `out`, and return the result of the library."""

    def pair(self, sources: Path, out: Path) -> Pair:
        """Load the original and the compressed network."""

    def original(self, sources: Path) -> nn.Module:
        """Load the original."""


@dataclass(frozen=True)
class Module:
    """A network in memory.

    Attributes:
        make: gives it with its weights.
    """

    make: Callable[[], nn.Module]

    def prepare(self, sources: Path) -> None:
        """Nothing: the weights are among the data files or in a package."""

    def load(self, sources: Path) -> nn.Module:  # noqa: ARG002 (the protocol)
        return self.make()

    def compress(self, ready: nn.Module, data: Any, out: Path, options: Options) -> Any:
        result = waterfill.compress(ready, data, **options)
        result.save(out / "model.wf")
        return result

    def pair(self, sources: Path, out: Path) -> Pair:
        copy = waterfill.load(out / "model.wf", into=self.make())
        return self.original(sources), copy.eval()

    def original(self, sources: Path) -> nn.Module:  # noqa: ARG002 (the protocol)
        return self.make()


@dataclass(frozen=True)
class MiniLmFile:
    """The safetensors file of all-MiniLM-L6-v2, without data."""

    def prepare(self, sources: Path) -> None:
        """Nothing: the file is in its package."""

    def load(self, sources: Path) -> Path:  # noqa: ARG002 (the protocol)
        folder = minilm.folder()
        if folder is None:
            raise FileNotFoundError(f"The network is not installed: {minilm.INSTALL}.")
        return folder / "model.safetensors"

    def compress(self, ready: Path, data: None, out: Path, options: Options) -> Any:  # noqa: ARG002 (the protocol)
        result = waterfill.compress(ready, **options)
        result.save(out / "model.wf")
        return result

    def pair(self, sources: Path, out: Path) -> Pair:
        copy = waterfill.load(out / "model.wf", into=minilm.pretrained())
        return self.original(sources), copy.eval()

    def original(self, sources: Path) -> nn.Module:  # noqa: ARG002 (the protocol)
        return minilm.pretrained()


@dataclass(frozen=True)
class Directory:
    """A Hugging Face model directory, compressed block by block.

    Attributes:
        name: of the folder.
        make: writes the directory.
        auto: class of transformers that loads it.
        architecture: class of transformers that this one finds.
    """

    name: str
    make: Callable[[Path], Path]
    auto: str = "AutoModelForCausalLM"
    architecture: str = "LlamaForCausalLM"

    def prepare(self, sources: Path) -> None:
        if not (sources / self.name / "config.json").exists():
            self.make(sources / self.name)

    def load(self, sources: Path) -> Path:
        import transformers

        getattr(transformers, self.architecture)  # importing it takes seconds
        return sources / self.name

    def compress(self, ready: Path, data: Any, out: Path, options: Options) -> Any:
        return waterfill.compress_directory(ready, out / "model", data, force=True, **options)

    def pair(self, sources: Path, out: Path) -> Pair:
        return self.original(sources), self._model(out / "model")

    def original(self, sources: Path) -> nn.Module:
        return self._model(sources / self.name)

    def _model(self, folder: Path) -> nn.Module:
        import transformers

        model: nn.Module = getattr(transformers, self.auto).from_pretrained(folder, dtype=torch.float32)
        return model.eval()
