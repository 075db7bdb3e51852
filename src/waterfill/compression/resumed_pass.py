"""A pass through a block that is made again after some matrices have changed, from the first product with one of them.

Products and attention take the time of a pass; all else is computed again. So the results of the former are kept, call
by call, and given again as long as nothing before them has changed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from waterfill.models.batches import tensors_in
from waterfill.models.functions import PRODUCTS

EXPENSIVE = frozenset({*PRODUCTS, F.scaled_dot_product_attention, torch.bmm, torch.baddbmm, torch.einsum})
"""Functions whose results are kept."""

BUDGET_BYTES = 1 << 30
"""Memory for the results of all batches; those that do not fit are computed again."""


class KeptResults:
    """Results of expensive calls of one batch, in their order, for the passes that follow.

    Args:
        most: bytes that they may take.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._results: list[tuple[Tensor, int] | None] = []
        self._first: dict[int, int] = {}

    def cut(self, changed: Collection[Tensor]) -> None:
        """Let go of what depends on tensors that have changed: of all calls from the first with one of them."""
        start = min((self._first[id(tensor)] for tensor in changed if id(tensor) in self._first), default=None)
        if start is None:
            return
        del self._results[start:]
        self._first = {key: index for key, index in self._first.items() if index < start}

    @property
    def _bytes(self) -> int:
        return sum(each[0].nbytes for each in self._results if each is not None)

    def call(self, index: int, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The result of an expensive call, from before where it is known."""
        known = self._results[index] if index < len(self._results) else None
        if known is not None and known[0]._version == known[1]:  # not written over since
            return known[0]
        result = func(*args, **kwargs)
        for each in tensors_in((*args, *kwargs.values())):
            self._first.setdefault(id(each), index)
        self._keep(index, result)
        return result

    def _keep(self, index: int, result: Any) -> None:
        plain = type(result) is Tensor and not result.is_inference()
        kept = (result, result._version) if plain and self._bytes + result.nbytes <= self._most else None
        self._results[index : index + 1] = [kept]


class ResumedPass(TorchFunctionMode):
    """While it is entered, expensive calls of a pass give the results that are kept.

    Args:
        kept: of the batch.
    """

    def __init__(self, kept: KeptResults) -> None:
        super().__init__()
        self._kept, self._count = kept, 0

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Give a result again, or call a function."""
        del types
        if func not in EXPENSIVE or any(each.is_meta for each in args if isinstance(each, Tensor)):
            return func(*args, **(kwargs or {}))  # a call for a shape is none of the pass
        self._count += 1
        return self._kept.call(self._count - 1, func, args, kwargs or {})
