"""How much work it is to run a model on a sample, in values that are computed; the same on every machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from waterfill.models.batches import Inputs, call, evaluation, num_samples, take, tensors_in

FEW_SAMPLES = 2
"""On so many samples it is measured."""

MULTIPLICATIONS = 160
"""So many multiplications of a product take as long as one value of an elementwise function."""


class WorkCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the values that all functions compute, and the multiplications of products.

    Attributes:
        values: of results that have memory of their own.
        multiplications: of matrix products and convolutions.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        from torch.utils.flop_counter import flop_registry  # here, for `import waterfill` to stay light

        self.values = 0
        self.multiplications = 0
        self._products = flop_registry

    @property
    def work(self) -> float:
        """Both together, in values."""
        return self.values + self.multiplications / MULTIPLICATIONS

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """PyTorch need not hide it from its compiler, which takes two seconds to import."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function and count."""
        del types
        named = dict(kwargs or {})
        result = func(*args, **named)
        if not getattr(func, "is_view", False):
            self.values += sum(each.numel() for each in tensors_in((result,)))
        count = self._products.get(getattr(func, "_overloadpacket", None))
        if count is not None:
            self.multiplications += count(*args, **named, out_val=result) // 2
        return result


def sample_work(model: nn.Module, inputs: Inputs) -> float:
    """Measure the work of one sample, with other samples at once; 1 where a model cannot be watched.

    Args:
        model: the network; it is left as it was.
        inputs: of one batch.
    """
    samples = min(FEW_SAMPLES, num_samples(inputs))
    counter = WorkCounter()
    try:
        with evaluation(model), torch.no_grad(), counter:
            call(model, take(inputs, 0, samples))
    except Exception:  # noqa: BLE001 - whatever a stranger's module raises when it is watched, it is not stopped by it
        return 1.0
    work: float = counter.work
    return max(1.0, work / max(1, samples))


@dataclass(frozen=True)
class WorkBudget:
    """How much a stage may let a model compute.

    Attributes:
        values: at least.
        per_weight: for every weight of the model, where that is more.
    """

    values: float
    per_weight: float

    def samples(self, model: nn.Module, work: float) -> int:
        """So many samples are within it; always one.

        Args:
            model: the network.
            work: of one sample, by `sample_work`.
        """
        return max(1, int(self.of(model) / work))

    def of(self, model: nn.Module) -> float:
        """What it is for a model, in values."""
        return max(self.values, self.per_weight * sum(each.numel() for each in model.parameters()))
