"""See the input of every product with a matrix before its output goes anywhere, and change the matrix just then."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.overrides import TorchFunctionMode

from waterfill.models.batches import tensors_in
from waterfill.models.functions import PRODUCTS
from waterfill.models.uses import View

Act: TypeAlias = Callable[[str, View, Tensor], object]
"""Takes the name of a matrix, how the layer reads it and the input [rows, ...]."""


class ProductWatch(TorchFunctionMode):
    """While it is entered, `act` is called at every product with one of the tensors.

    Products are those of `functions.PRODUCTS`. `act` comes before the product is computed, and may change the matrix.

    Args:
        tensors: what to watch for, by name.
        act: what to call.

    Attributes:
        missed: names that also went into other functions.
    """

    def __init__(self, tensors: Mapping[str, Tensor], act: Act) -> None:
        super().__init__()
        self.missed: set[str] = set()
        self._names = {id(tensor): name for name, tensor in tensors.items()}
        self._act = act

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Handle one function call of the model."""
        del types
        handler = PRODUCTS.get(func)
        if handler is None:
            return self.pass_through(func, *args, **(kwargs or {}))
        named = kwargs or {}
        tensors = tensors_in((args, named))
        watched = any(self.name_of(each) is not None for each in tensors)
        if not watched or any(map(is_functorch_wrapped_tensor, tensors)):
            return handler(self, func, *args, **named)
        stand_in = tensors[0].new_empty(()).expand(tensors[0].shape)  # of the result, before there is one
        handler(self, lambda *_, **__: stand_in, *args, **named)
        return func(*args, **named)

    def pass_through(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function that is no product; watched tensors that its result may depend on are missed."""
        result = func(*args, **kwargs)
        if tensors_in((result,)):
            self.miss(*args, *kwargs.values())
        return result

    def name_of(self, value: Any) -> str | None:
        """Name of a watched tensor; None for everything else."""
        return self._names.get(id(value)) if isinstance(value, Tensor) else None

    def miss(self, *values: Any) -> None:
        """Note every watched tensor among `values`."""
        self.missed.update(name for each in tensors_in(values) if (name := self.name_of(each)) is not None)

    def record(self, y: Tensor, tensor: Tensor, view: View, x: Callable[[], Tensor] | None, lead: int) -> None:
        """Act on one use of a watched tensor; see `UseRecorder.record`."""
        del lead
        name = self.name_of(tensor)
        if is_functorch_wrapped_tensor(y):  # of a transformation such as vmap, outside of which it is nothing
            self.miss(tensor)
        elif name is not None and x is not None:
            self._act(name, view, x())
