"""Codecs of others: NNCodec, pruning with k-means and Huffman, and rounding to nearest with zstd.

All take a state dict of float32 arrays, with each batch norm as one scale and one shift, and give one stream.
"""

from __future__ import annotations

import contextlib
import io
import json
import struct
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol
from unittest.mock import MagicMock

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray
from torch import nn

import huffman

Arrays = dict[str, NDArray[Any]]
INSTALL = "pip install --no-deps nncodec==2.1.3"
LEAST_VARIANCE = 1e-12


class Codec(Protocol):
    """One setting of a codec."""

    @property
    def setting(self) -> str: ...

    def encode(self, state: Arrays) -> bytes: ...

    def decode(self, data: bytes) -> Arrays: ...


# Batch norms as scale and shift


def folded(model: nn.Module, *, into_weights: bool = False) -> Arrays:
    """What has to be stored: parameters, tied ones once, and two vectors for each batch norm.

    Args:
        model: the network.
        into_weights: multiply the rows of the convolution before a norm by its scale, and store the shift alone.
    """
    state = {name: each.detach().numpy().copy() for name, each in model.named_parameters()}
    before = ""
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            scale, shift = _affine(module)
            state[f"{name}.weight"], state[f"{name}.bias"] = scale, shift
            if into_weights:
                state[before] *= state.pop(f"{name}.weight")[:, None, None, None]
        elif isinstance(module, nn.Conv2d):
            before = f"{name}.weight"
    return state


def unfolded(state: Arrays, model: nn.Module) -> nn.Module:
    """Fill a network with what was stored."""
    parameters = dict(model.named_parameters())
    norms = {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    inside = {f"{name}.{kind}" for name in norms for kind in ("weight", "bias")}
    if missing := parameters.keys() - state.keys() - inside:
        raise ValueError(f"The stream lacks {sorted(missing)}.")
    with torch.no_grad():
        for name, parameter in parameters.items():
            if name not in inside:
                parameter.copy_(torch.from_numpy(np.array(state[name], np.float32)).reshape(parameter.shape))
        for name, norm in norms.items():
            shift = torch.from_numpy(np.array(state[f"{name}.bias"], np.float32))
            scale = torch.from_numpy(np.array(state.get(f"{name}.weight", np.ones(len(shift))), np.float32))
            _fill(norm, scale, shift)
    return model.eval()


def _affine(norm: nn.BatchNorm2d) -> tuple[NDArray[Any], NDArray[Any]]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        scale = (norm.running_var + norm.eps).rsqrt()
        scale = scale * norm.weight if norm.affine else scale
        shift = -norm.running_mean * scale
        return scale.numpy(), (shift + norm.bias if norm.affine else shift).numpy()


def _fill(norm: nn.BatchNorm2d, scale: torch.Tensor, shift: torch.Tensor) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    if norm.affine:
        norm.running_mean.zero_()
        norm.running_var.fill_(1 - norm.eps)
        norm.weight.copy_(scale)
        norm.bias.copy_(shift)
    else:
        norm.running_mean.copy_(-shift / scale)
        norm.running_var.copy_((scale.square().reciprocal() - norm.eps).clamp(min=LEAST_VARIANCE))


# NNCodec


def nncodec() -> ModuleType | None:
    """The package, with empty stand-ins for what it imports only for its data sets; None where it is missing."""
    for _ in range(20):
        try:
            import nncodec.nnc as found
        except ModuleNotFoundError as error:
            missing = error.name or ""
            if missing.partition(".")[0] == "nncodec":
                return None
            sys.modules[missing] = MagicMock()
            for name in [name for name in sys.modules if name.startswith("nncodec")]:
                del sys.modules[name]
        else:
            return found  # type: ignore[no-any-return]
    return None


@dataclass(frozen=True)
class NnCodec:
    """ISO/IEC 15938-17 by its reference software, dependent quantization with 8 states.

    Attributes:
        qp: steps of the weights, double at every fourth; halves go to the codec as a `qp` of twice the density.
        lambda_scale: weight of the rate in its search.
        optimize: its `opt_qp`, which gives tensors different steps by size and deviation.
        vector_qp: steps of vectors.
    """

    qp: float
    lambda_scale: float
    optimize: bool = False
    vector_qp: int = -40

    @property
    def setting(self) -> str:
        return f"qp {self.qp:g}, lambda_scale {self.lambda_scale:g}" + ", opt_qp" * self.optimize

    def encode(self, state: Arrays) -> bytes:
        package = nncodec()
        assert package is not None
        finer = int(self.qp != int(self.qp))
        options = {
            "qp": int(self.qp * 2**finer),
            "qp_density": 2 + finer,
            "nonweight_qp": self.vector_qp * 2**finer,
            "lambda_scale": self.lambda_scale,
            "opt_qp": self.optimize,
            "use_dq": True,
        }
        with contextlib.redirect_stdout(io.StringIO()):
            stream = package.compress(
                {name: np.ascontiguousarray(array) for name, array in state.items()},
                bitstream_path=None,
                return_bitstream=True,
                **options,
            )
        return bytes(stream)

    def decode(self, data: bytes) -> Arrays:
        package = nncodec()
        assert package is not None
        with contextlib.redirect_stdout(io.StringIO()):
            return dict(package.decompress(bytearray(data)))


# Streams of a header and parts


def _joined(header: Any, parts: list[bytes]) -> bytes:
    """Length and header as compressed JSON, and the parts, whose lengths it has."""
    packed = zstandard.compress(json.dumps([header, [len(part) for part in parts]]).encode(), 19)
    return b"".join([struct.pack("<I", len(packed)), packed, *parts])


def _split(data: bytes) -> tuple[Any, list[bytes]]:
    (size,) = struct.unpack_from("<I", data)
    header, sizes = json.loads(zstandard.decompress(data[4 : 4 + size]))
    ends = 4 + size + np.cumsum(sizes)
    return header, [data[end - size : end] for end, size in zip(ends.tolist(), sizes, strict=True)]


def _is_vector(array: NDArray[Any]) -> bool:
    return array.ndim < 2


@dataclass(frozen=True)
class NearestZstd:
    """Symmetric integers of some bits with a step for each row, and zstd; vectors in half precision."""

    bits: int

    @property
    def setting(self) -> str:
        return f"{self.bits} bit"

    def encode(self, state: Arrays) -> bytes:
        parts, most = [], 2 ** (self.bits - 1) - 1
        for array in state.values():
            if _is_vector(array):
                parts.append(array.astype(np.float16).tobytes())
                continue
            matrix = array.reshape(len(array), -1)
            steps = (np.abs(matrix).max(1) / most).astype(np.float16).astype(np.float32)
            steps[steps == 0] = 1
            levels = np.rint(matrix / steps[:, None]).clip(-most, most).astype(np.int8)
            parts += [steps.astype(np.float16).tobytes(), levels.tobytes()]
        return _joined(
            [[name, array.shape] for name, array in state.items()], [zstandard.compress(b"".join(parts), 19)]
        )

    def decode(self, data: bytes) -> Arrays:
        header, (packed,) = _split(data)
        body, place, state = zstandard.decompress(packed), 0, {}
        for name, shape in header:
            size = int(np.prod(shape))
            first = np.frombuffer(body, np.float16, shape[0] if len(shape) > 1 else size, place).astype(np.float32)
            place += 2 * len(first)
            if len(shape) > 1:
                levels = np.frombuffer(body, np.int8, size, place).reshape(shape[0], -1)
                first, place = levels * first[:, None], place + size
            state[name] = first.reshape(shape)
        return state


@dataclass(frozen=True)
class DeepCompression:
    """Pruning by magnitude, k-means per tensor, Huffman codes of gaps and clusters; nothing is trained again.

    Source: Han, Mao, Dally, "Deep Compression" (2016). Thresholds are multiples of a tensor's standard deviation, as
    there; vectors and centroids are in half precision.
    """

    threshold: float
    clusters: int
    rounds: int = 40
    farthest: int = 255

    @property
    def setting(self) -> str:
        return f"{self.threshold:g} std, {self.clusters} clusters"

    def encode(self, state: Arrays) -> bytes:
        header, parts = [], []
        for name, array in state.items():
            if _is_vector(array):
                header.append([name, array.shape])
                parts.append(array.astype(np.float16).tobytes())
                continue
            values = array.reshape(-1)
            kept = np.flatnonzero(np.abs(values) >= self.threshold * values.std())
            centroids, labels = _clusters(values[kept], self.clusters, self.rounds)
            gaps = self._gaps(kept)
            header.append([name, array.shape, len(gaps), len(kept)])
            parts.append(centroids.astype(np.float16).tobytes())
            for symbols, alphabet in ((gaps, self.farthest + 1), (labels, len(centroids))):
                bits = huffman.lengths(symbols, alphabet)
                parts += [zstandard.compress(bits.tobytes(), 19), huffman.encode(symbols, bits)]
        return _joined(header, parts)

    def decode(self, data: bytes) -> Arrays:
        header, parts = _split(data)
        state, rest = {}, iter(parts)
        for name, shape, *counts in header:
            if not counts:
                state[name] = np.frombuffer(next(rest), np.float16).astype(np.float32).reshape(shape)
                continue
            centroids = np.frombuffer(next(rest), np.float16).astype(np.float32)
            gaps, labels = (
                huffman.decode(stream, np.frombuffer(zstandard.decompress(bits), np.uint8), count)
                for count, bits, stream in zip(counts, rest, rest, strict=False)
            )
            values = np.zeros(int(np.prod(shape)), np.float32)
            places = np.cumsum(gaps + (gaps < self.farthest)) - 1
            values[places[gaps < self.farthest]] = centroids[labels]
            state[name] = values.reshape(shape)
        return state

    def _gaps(self, kept: NDArray[np.int64]) -> NDArray[np.int64]:
        """Zeros before each value that is kept; the largest symbol stands for as many zeros and no value."""
        zeros = np.diff(kept, prepend=-1) - 1
        jumps = zeros // self.farthest
        gaps = np.full(int(jumps.sum()) + len(kept), self.farthest)
        gaps[np.cumsum(jumps + 1) - 1] = zeros % self.farthest
        return gaps


def _clusters(values: NDArray[Any], number: int, rounds: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Lloyd's algorithm from evenly spaced centroids."""
    if not len(values):
        return np.zeros(1, np.float32), np.zeros(0, np.int64)
    centroids = np.linspace(values.min(), values.max(), min(number, len(np.unique(values))))
    labels = np.zeros(len(values), np.int64)
    for _ in range(rounds):
        labels = np.searchsorted((centroids[1:] + centroids[:-1]) / 2, values)
        counts = np.bincount(labels, minlength=len(centroids))
        sums = np.bincount(labels, weights=values, minlength=len(centroids))
        centroids = np.where(counts > 0, sums / np.maximum(counts, 1), centroids)
    return centroids, labels
