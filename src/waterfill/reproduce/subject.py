"""The network of an experiment, as something to compress in the ways of the paper and to measure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from waterfill._version import PRODUCER
from waterfill.codec import container
from waterfill.compression.calibration import PreparedModel
from waterfill.compression.encoder import Encoder, decoded_matrix
from waterfill.compression.in_memory import InMemoryWalk
from waterfill.compression.level_search import search
from waterfill.compression.limits import SourceModels
from waterfill.compression.settings import Settings
from waterfill.compression.target import Target
from waterfill.evaluation import evaluate
from waterfill.files import WaterfillFile
from waterfill.importance import identity
from waterfill.models import torch_module
from waterfill.models.arrays import exact_bytes
from waterfill.models.cloning import clone
from waterfill.protocols import QuadraticForm, Quantizer
from waterfill.quantize import Threshold
from waterfill.records import Inventory, Quantized
from waterfill.reproduce.experiments import Task

Forms = Mapping[str, QuadraticForm]

LADDER = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64)
"""Numbers of centroids among which every matrix chooses, where the whole model has one water level."""

LOWEST_LOG2, HIGHEST_LOG2, PRECISION = -100.0, 50.0, 0.02
"""Between which prices of a bit that choice is searched, and how closely, in powers of two."""

FLOAT_BITS = 32


@dataclass(frozen=True, eq=False)
class Samples:
    """Batches with what the original says about them.

    Attributes:
        batches: of (input, target).
        references: outputs of the original.
    """

    batches: Sequence[tuple[Tensor, Tensor]]
    references: Sequence[Tensor]


@dataclass(frozen=True, eq=False)
class Subject:
    """A network of which the matrices are compressed and everything else is kept as it is.

    Attributes:
        model: the original.
        copy: a network to fill.
        inventory: its matrices, and all other tensors as exact ones.
    """

    model: nn.Module
    copy: nn.Module
    inventory: Inventory

    @classmethod
    def of(cls, model: nn.Module) -> Subject:
        """Make one; of convolutions and linear layers the weights are compressed, as by the paper's authors."""
        everything = torch_module.inventory(model, fold_norms=False)
        matrices = [name for name, weight in everything.weights.items() if not weight.is_vector]
        copy = clone(model)
        nn.utils.convert_conv2d_weight_memory_format(copy, torch.channels_last)  # convolutions are a third faster so
        return cls(model, copy, torch_module.inventory(model, fold_norms=False, include=matrices))

    def quantize(self, quantizer: Quantizer, forms: Forms) -> dict[str, Quantized]:
        """Compress every matrix with the same options."""
        encoder = Encoder(quantizer)
        return encoder.quantize(encoder.jobs(self.inventory.weights, forms), 0.0)

    def pack(self, quantized: Mapping[str, Quantized]) -> bytes:
        """A whole file."""
        exact = {name: exact_bytes(tensor) for name, tensor in self.inventory.exact.items()}
        return container.pack(self.inventory.entries, quantized, exact, PRODUCER).data

    def prune_to_size(self, forms: Forms, size_bytes: int) -> tuple[Mapping[str, Quantized], bytes]:
        """The file with one threshold for the whole model that is as large as one with a fraction for every matrix."""
        known = forms or identity().forms(self.inventory.weights)
        ready = PreparedModel(self.inventory, identity(), known, None)
        walk = InMemoryWalk(ready, Settings(Threshold()), SourceModels())
        quantized = search([walk], Target("size_bytes", size_bytes)).coded.quantized
        return quantized, self.pack(quantized)  # as the others do not, it does not name its limit

    def cluster_to_size(
        self, ladder: Sequence[Mapping[str, Quantized]], size_bytes: int
    ) -> tuple[Mapping[str, Quantized], bytes]:
        """The same with codebooks: every matrix takes the number of centroids that pays at one price of a bit.

        Args:
            ladder: all matrices at rising numbers of centroids.
            size_bytes: of the whole file; the least price of which the file is not larger.
        """
        low, high = LOWEST_LOG2, HIGHEST_LOG2
        best, data = dict(ladder[0]), self.pack(ladder[0])
        while high - low > PRECISION:
            middle = (low + high) / 2
            chosen = {name: _least(ladder, name, 2.0**middle) for name in best}
            packed = self.pack(chosen)
            if len(packed) <= size_bytes:
                high, best, data = middle, chosen, packed
            else:
                low = middle
        return best, data

    def fill(self, quantized: Mapping[str, Quantized]) -> None:
        """Put compressed matrices into the copy."""
        values: dict[str, Tensor] = {}
        for name, item in quantized.items():
            layout = self.inventory.weights[name].layout
            values[name] = torch.from_numpy(layout.from_matrix(decoded_matrix(layout, item)))
        self.copy.load_state_dict(values, strict=False)

    def load(self, data: bytes) -> None:
        """Put a whole file into the copy."""
        torch_module.fill(self.copy, dict(WaterfillFile(data).tensors()))

    def digest(self) -> str:
        """What tells the copy's weights from others."""
        return state_digest(self.copy)


def _least(ladder: Sequence[Mapping[str, Quantized]], name: str, price: float) -> Quantized:
    """The step of a ladder at which a matrix has the least distortion and bits."""
    return min((step[name] for step in ladder), key=lambda item: item.distortion + price * item.bits)


def state_digest(model: nn.Module) -> str:
    """SHA-256 of all values of a state dict, hexadecimal."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(exact_bytes(tensor))
    return digest.hexdigest()


def measure(model: nn.Module, samples: Samples) -> dict[str, float]:
    """Accuracy, top-5 accuracy, cross-entropy and KL to the original, of six digits."""
    found = evaluate(model, samples.batches, samples.references, output="logits").to_dict()
    names = ("accuracy", "top5", "cross_entropy", "kl")
    return {name: float(f"{value:.6g}") for name in names if (value := found[name]) is not None}


def paper_ratio(task: Task, quantized: Mapping[str, Quantized]) -> float:
    """Compressed over original size by the formulas of the paper, of the matrices alone.

    Pruning: the fraction of weights that are not zero. Quantization: Huffman-like lengths of whole bits,
    `(m sum_j (m_j / m) ceil(log2(m / m_j)) + k b) / (m b)` with b = 32.

    Source: section 6 of the paper.
    """
    total = sum(item.symbols.size for item in quantized.values())
    if task == "prune":
        return float(sum(int(np.count_nonzero(item.symbols)) for item in quantized.values()) / total)
    return sum(_huffman_bits(item.symbols) for item in quantized.values()) / (FLOAT_BITS * total)


def _huffman_bits(symbols: np.ndarray[Any, np.dtype[np.int32]]) -> float:
    counts = np.unique(symbols, return_counts=True)[1]
    return float((counts * np.ceil(np.log2(symbols.size / counts))).sum() + FLOAT_BITS * counts.size)
