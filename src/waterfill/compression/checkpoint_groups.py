"""Group the tensors of a checkpoint: those of a transformer block, large ones on their own, all others."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

LARGE = 1 << 20
"""Values of a tensor outside of the blocks that is a group of its own."""

REST = "rest"
"""Name of the group of all others."""

_NUMBERED = re.compile(r"(.*?)\.(\d+)\.")


@dataclass(frozen=True)
class TensorGroup:
    """Tensors that are coded, stored and decoded together.

    Attributes:
        name: the prefix that they share, the name of the only one, or `rest`.
        tensors: their names in the checkpoint, in its order.
        block: number of the transformer block; None outside of blocks.
    """

    name: str
    tensors: tuple[str, ...]
    block: int | None = None


def groups_of(shapes: Mapping[str, tuple[int, ...]]) -> list[TensorGroup]:
    """The groups of a checkpoint: blocks in their order, then large tensors, then the rest.

    Args:
        shapes: of all its tensors.
    """
    families: dict[str, dict[int, list[str]]] = {}
    for name in shapes:
        numbered = _NUMBERED.match(name)
        if numbered is not None:
            families.setdefault(numbered[1], {}).setdefault(int(numbered[2]), []).append(name)
    family = _family(families, shapes)
    members = families.get(family, {})
    found = [TensorGroup(f"{family}.{number}", tuple(members[number]), number) for number in sorted(members)]
    inside = {name for group in found for name in group.tensors}
    outside = [name for name in shapes if name not in inside]
    large = [name for name in outside if math.prod(shapes[name]) >= LARGE]
    rest = tuple(name for name in outside if name not in large)
    return [*found, *(TensorGroup(name, (name,)) for name in large), *([TensorGroup(REST, rest)] if rest else [])]


def _family(families: Mapping[str, Mapping[int, list[str]]], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The prefix of the blocks: the one with the most values."""

    def values(family: str) -> int:
        return sum(math.prod(shapes[name]) for names in families[family].values() for name in names)

    return max(families, key=values, default="")
