"""The interface between the functions of a model and whoever watches them: what a handler may ask of its recorder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, Self

from torch import Tensor

from waterfill.models.uses import View


class UseRecorder(Protocol):
    """Takes the uses of learned tensors from the handlers of `functions`."""

    def name_of(self, value: Any) -> str | None:
        """Name of a learned tensor; None for everything else."""
        ...

    def miss(self, *values: Any) -> None:
        """Note that every learned tensor among `values` is used in a way that is not recorded."""
        ...

    def record(self, y: Tensor, tensor: Tensor, view: View, x: Callable[[], Tensor] | None, lead: int) -> None:
        """Note that `tensor` was used to compute `y`; nothing is noted for a tensor that is not learned.

        Args:
            y: output of the layer.
            tensor: any tensor.
            view: how the layer uses it.
            x: gives the input of the layer [rows, ...]; None where it is 1.
            lead: number of leading axes of y that count rows.
        """
        ...

    def pass_through(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function that has no handler; learned tensors that its result depends on are missed."""
        ...


class SubstitutingRecorder(UseRecorder, Protocol):
    """A recorder whose passes may compute with other tensors in place of the learned ones, and with folded norms.

    It is a context: functions that are called inside it come to its handlers.
    """

    def value(self, tensor: Tensor) -> Tensor:
        """What stands for a learned tensor in this pass: its substitute, or itself."""
        ...

    def folded(self, running_var: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """Learned scale and shift of the norm with this running variance; None where it is not folded."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: Any, error: Any, trace: Any, /) -> Any: ...
