"""Integers of a few bits in groups with a scale each: what round-to-nearest and GPTQ write."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

GROUP = 32
"""Weights of a row that share a scale."""

SHRINKS = torch.linspace(0.4, 1.2, 25)
"""Parts of the range of a group that are tried as the range of its grid; the least squared error counts."""

ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Grid:
    """Which integers there are.

    Attributes:
        bits: of each integer.
        symmetric: zero is in the middle, and a negative scale puts the one level more above it; otherwise each group
            has an integer for zero, of as many bits.
    """

    bits: int
    symmetric: bool

    @property
    def levels(self) -> int:
        """How many integers."""
        return 1 << self.bits

    def fit(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero of the least squared error for one group of each row.

        Args:
            weight: [rows, columns of the group].

        Returns:
            Scales, numbers of half precision as float32, and zeros in [0, levels), both [rows, 1].
        """
        tried = [self._candidate(weight, float(shrink), sign) for shrink in SHRINKS for sign in self._signs]
        errors = torch.stack([(self.rounded(weight, *each)[1] - weight).square().sum(1) for each in tried])
        best = errors.argmin(0)[None, :, None]
        scales, zeros = (torch.stack(parts).gather(0, best)[0] for parts in zip(*tried, strict=True))
        return scales, zeros

    @property
    def _signs(self) -> tuple[float, ...]:
        return (1.0, -1.0) if self.symmetric else (1.0,)

    def _candidate(self, weight: Tensor, shrink: float, sign: float) -> tuple[Tensor, Tensor]:
        if self.symmetric:
            scale = _half(sign * shrink * weight.abs().amax(1, keepdim=True) / (self.levels / 2))
            return scale, torch.full_like(scale, self.levels // 2)
        low, high = weight.amin(1, keepdim=True).clamp(max=0), weight.amax(1, keepdim=True).clamp(min=0)
        scale = _half(shrink * (high - low) / (self.levels - 1))
        return scale, (-shrink * low / scale).round().nan_to_num(0).clamp(0, self.levels - 1)

    def rounded(self, weight: Tensor, scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest integers, and what they stand for."""
        codes = (weight / scale + zero).round().nan_to_num(0).clamp(0, self.levels - 1)
        return codes, (codes - zero) * scale


@dataclass(frozen=True, eq=False)
class Packed:
    """A matrix as bytes.

    Attributes:
        shape: [rows, columns].
        grid: its integers.
        codes: bits of all integers, row by row.
        scales: float16 [rows, groups].
        zeros: bits of the zeros; empty for a symmetric grid.
    """

    shape: tuple[int, int]
    grid: Grid
    codes: NDArray[np.uint8]
    scales: NDArray[np.float16]
    zeros: NDArray[np.uint8]

    @classmethod
    def of(cls, grid: Grid, codes: Tensor, scales: Tensor, zeros: Tensor) -> Packed:
        """Pack integers [rows, columns] with scales and zeros [rows, groups]."""
        packed_zeros = np.empty(0, np.uint8) if grid.symmetric else pack(zeros.numpy(), grid.bits)
        rows, columns = codes.shape
        return cls((rows, columns), grid, pack(codes.numpy(), grid.bits), scales.half().numpy(), packed_zeros)

    @property
    def size_bytes(self) -> int:
        """Bytes of integers, scales and zeros."""
        return self.codes.nbytes + self.scales.nbytes + self.zeros.nbytes

    def unpack(self) -> Tensor:
        """The matrix that the bytes stand for, float32."""
        bits, groups = self.grid.bits, self.scales.shape
        codes = unpack(self.codes, bits, self.shape)
        middle = np.full(groups, self.grid.levels // 2, np.uint8)
        zeros = middle if self.grid.symmetric else unpack(self.zeros, bits, groups)
        scale, zero = (np.repeat(part, GROUP, 1)[:, : self.shape[1]] for part in (self.scales, zeros))
        return torch.from_numpy((codes.astype(np.float32) - zero) * scale.astype(np.float32))


def pack(codes: NDArray[np.generic], bits: int) -> NDArray[np.uint8]:
    """Integers in [0, 2^bits) one after the other, without gaps."""
    spelled = np.unpackbits(codes.astype(np.uint8).reshape(-1, 1), axis=1)[:, -bits:]
    return np.packbits(spelled)


def unpack(data: NDArray[np.uint8], bits: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """What `pack` was given."""
    count = int(np.prod(shape))
    spelled = np.zeros((count, 8), np.uint8)
    spelled[:, -bits:] = np.unpackbits(data)[: count * bits].reshape(count, bits)
    return np.packbits(spelled, axis=1).reshape(shape)


def nearest(weight: Tensor, grid: Grid) -> Packed:
    """Round a matrix to nearest."""
    parts = [_nearest(rows, grid) for rows in weight.split(ROWS_AT_ONCE)]
    return Packed.of(grid, *(torch.cat(each) for each in zip(*parts, strict=True)))


def _nearest(weight: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    groups = weight.split(GROUP, 1)
    fitted = [grid.fit(group) for group in groups]
    codes = [grid.rounded(group, *each)[0] for group, each in zip(groups, fitted, strict=True)]
    scales, zeros = (torch.cat(each, 1) for each in zip(*fitted, strict=True))
    return torch.cat(codes, 1), scales, zeros


def _half(scale: Tensor) -> Tensor:
    return scale.half().float()
