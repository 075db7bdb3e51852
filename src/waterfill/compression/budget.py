"""One water level for groups that are coded one after the other, so that all together fill a size.

The level is the one at which the groups that are left are foreseen to take what is left. How many bits codes take for
every bit that is foreseen is known from a pilot, and then from the groups that are done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from waterfill.compression.rate_model import Volumes

OVERHEAD = 300.0
"""Bytes of a payload beside its matrices and vectors, until one is known."""

VECTOR_BITS = 9.0
"""Bits of a value of a vector, until some are known."""

PILOT_WEIGHT = 0.2
"""What the pilot counts beside groups that are done: as so many of its own size."""

CLOSELY = 0.003
"""How far below the size is aimed at."""


@dataclass(eq=False)
class Budget:
    """What is left of a size.

    Attributes:
        bits: of all payloads.
        volumes: of the matrices of every group that is left, by name.
        vectors: number of values of vectors in every group that is left.
        exact: bits of what is stored without loss in every group that is left.
        ratio: bits that matrices take for every bit that is foreseen.
        fixed: bits that a group takes beside its matrices for every bit that is expected.
    """

    bits: float
    volumes: dict[str, Volumes]
    vectors: Mapping[str, int]
    exact: Mapping[str, float] = field(default_factory=dict)
    ratio: float = 1.0
    fixed: float = 1.0
    _taken: float = 0.0
    _foreseen: float = 0.0

    def pilot(self, taken: float, foreseen: float) -> None:
        """Take in what a pilot took, in bits."""
        self._taken, self._foreseen = PILOT_WEIGHT * taken, PILOT_WEIGHT * foreseen
        self.ratio = taken / foreseen if foreseen > 0 else 1.0

    def level(self) -> float:
        """The level for the next group.

        Returns:
            In units of the volumes; the highest one where nothing is left.
        """
        left = self.bits * (1 - CLOSELY) - sum(map(self._beside, self.volumes))
        whole = sum(self.volumes.values(), Volumes.none())
        return whole.level_at_forecast(max(left, 1.0) / self.ratio)

    def is_last(self, group: str) -> bool:
        """Whether no other group with matrices is left."""
        return all(not volumes.number for name, volumes in self.volumes.items() if name != group)

    def beside_others(self, group: str) -> float:
        """Bits of all other groups that are left, beside their matrices."""
        return sum(self._beside(name) for name in self.volumes if name != group)

    def done(self, group: str, level: float, matrices: float, size: float) -> None:
        """Take in what a group took.

        Args:
            group: its name.
            level: at which it was coded.
            matrices: bits of its matrices.
            size: bits of its payload.
        """
        foreseen = self.volumes.pop(group).forecast(level)
        self.bits -= size
        self._taken, self._foreseen = self._taken + matrices, self._foreseen + foreseen
        if self._foreseen > 0:
            self.ratio = self._taken / self._foreseen
        if self.vectors.get(group, 0) and matrices:
            self.fixed = (size - matrices - self.exact.get(group, 0.0)) / max(1.0, self._expected_beside(group))

    def _beside(self, group: str) -> float:
        return self.exact.get(group, 0.0) + self._expected_beside(group) * self.fixed

    def _expected_beside(self, group: str) -> float:
        return 8 * OVERHEAD + VECTOR_BITS * self.vectors.get(group, 0)
