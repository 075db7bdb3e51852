"""Watch a forward pass and note every use of every learned tensor, in the normal form of `uses`.

```
model --call inside a Tape--> uses: x [rows, ...] of every learned tensor, and the site where its gradient is read
                         `--> missed: tensors that also went into a function this module does not know
```
Functions are watched, not modules: a tensor that several modules share, or that a model uses on its own, is seen as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from waterfill.errors import UnsupportedModelError
from waterfill.models import recurrent
from waterfill.models.torch_module import folded_norms, inventory
from waterfill.models.uses import Broadcast, Convolution, Dense, Tokens, Use, View
from waterfill.records import Layout


@dataclass(frozen=True, eq=False)
class Variables:
    """The learned tensors of a model as its forward pass meets them.

    Attributes:
        tensors: by name in the state dict: parameters, and the scale and shift of every folded batch norm.
        layouts: how each is read as a matrix.
        norms: names of the scale and the shift of the folded norm, by the identity of its running variance.
    """

    tensors: Mapping[str, Tensor]
    layouts: Mapping[str, Layout]
    norms: Mapping[int, tuple[str, str]]
    names: Mapping[int, str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", {id(tensor): name for name, tensor in self.tensors.items()})

    def name_of(self, value: Any) -> str | None:
        """Name of a learned tensor; None for everything else."""
        return self.names.get(id(value))


def variables(model: nn.Module, *, fold_norms: bool = True) -> Variables:
    """List the learned tensors of a model.

    Args:
        model: the network.
        fold_norms: whether batch norms count as a scale and a shift, as in `inventory`.

    Returns:
        Every tensor of `Inventory.weights` that is a parameter, or the scale or shift of a folded norm.
    """
    weights = inventory(model, fold_norms=fold_norms).weights
    tensors: dict[str, Tensor] = {
        name: parameter for name, parameter in model.named_parameters(remove_duplicate=False) if name in weights
    }
    norms: dict[int, tuple[str, str]] = {}
    for norm in folded_norms(model) if fold_norms else ():
        variance = model.get_submodule(norm.name).running_var
        assert isinstance(variance, Tensor)
        dtype = variance.dtype if torch.is_floating_point(variance) else torch.float32
        for name, value in ((norm.scale_name, norm.scale), (norm.shift_name, norm.shift)):
            tensors[name] = value.to(variance.device, dtype).requires_grad_()
        norms[id(variance)] = norm.scale_name, norm.shift_name
    ordered = {name: tensors[name] for name in weights if name in tensors}
    return Variables(ordered, {name: weights[name].layout for name in ordered}, norms)


class Tape(TorchFunctionMode):
    """While it is entered, forward passes leave their uses here, and compute what the model computes.

    Three things are done in another, equal way: folded batch norms as `s x + t`, recurrent layers step by step, and
    embeddings without their padding index, which changes gradients only: an error in the padding row does reach the
    output. `torch.no_grad` inside the model is not obeyed, because a layer under it matters as well.

    Args:
        learned: what to watch for.
        values: tensors to use instead of the learned ones, by name; for functional calls.

    Attributes:
        uses: by name.
        missed: names that also went into functions this module does not know.
        sites: where to ask for gradients; `Use.site` counts here.
        values_per_site: number of output values of every site.
    """

    def __init__(self, learned: Variables, values: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.learned = learned
        self.values = values or {}
        self.uses: dict[str, list[Use]] = {}
        self.missed: set[str] = set()
        self.sites: list[GradientEdge] = []
        self.values_per_site: list[int] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Handle one function call of the model."""
        del types
        handler = _HANDLERS.get(func)
        if handler is not None:
            return handler(self, func, *args, **(kwargs or {}))
        return self.pass_through(func, *args, **(kwargs or {}))

    def pass_through(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function that is not known; learned tensors that its result depends on are missed."""
        result = func(*args, **kwargs)
        if self.learned.name_of(result) is None and _has_gradient(result):
            first_only = func in _LOOK_AT_FIRST
            self.missed.update(self._learned_in(args[:1] if first_only else (args, kwargs)))
        return result

    def _learned_in(self, value: Any) -> Iterable[str]:
        if isinstance(value, Tensor):
            name = self.learned.name_of(value)
            return () if name is None else (name,)
        if isinstance(value, Mapping):
            value = tuple(value.values())
        return [name for part in value for name in self._learned_in(part)] if isinstance(value, tuple | list) else ()

    def value(self, tensor: Any) -> Any:
        """What stands for a learned tensor in this pass: its substitute, or itself."""
        name = self.learned.name_of(tensor)
        return tensor if name is None else self.values.get(name, tensor)

    def record(self, y: Tensor, tensor: Any, view: View, x: Tensor | None, rows: int) -> None:
        """Note that `tensor` was used to compute `y`; nothing is noted for tensors that are not learned.

        Args:
            y: output of the layer.
            tensor: a learned tensor, or anything else.
            view: how the layer uses it.
            x: input of the layer [rows, ...].
            rows: number of rows.
        """
        name = self.learned.name_of(tensor)
        if name is None:
            return
        if not y.requires_grad:
            raise UnsupportedModelError(
                f"Tensor {name!r} is used where gradients are off (torch.inference_mode); its importance cannot be "
                "measured. Take the inference mode out of the model's forward, or use the identity importance."
            )
        edge = get_gradient_edge(y)
        if not self.sites or self.sites[-1] != edge:
            self.sites.append(edge)
            self.values_per_site.append(y.numel())
        x = None if x is None else x.detach()
        self.uses.setdefault(name, []).append(Use(len(self.sites) - 1, view, x, rows))


def _has_gradient(result: Any) -> bool:
    if isinstance(result, Tensor):
        return result.requires_grad
    return isinstance(result, tuple | list) and any(map(_has_gradient, result))


# Handlers: one for every function that layers are made of, with that function's own signature --------------------------


def _linear(tape: Tape, func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    y: Tensor = func(input, weight, bias)
    rows = y.numel() // max(1, y.shape[-1])
    tape.missed.update(tape._learned_in(input))
    tape.record(y, weight, Dense(Layout(tuple(weight.shape))), input.reshape(rows, -1), rows)
    _record_term(tape, y, bias, (y.shape[-1],))
    return y


def _record_term(tape: Tape, y: Tensor, tensor: Tensor | None, trailing: tuple[int, ...]) -> None:
    if tensor is not None:
        lead = y.ndim - len(trailing)
        view = Broadcast(Layout(tuple(tensor.shape)), trailing, factor=False)
        tape.record(y, tensor, view, None, math.prod(y.shape[:lead]))


def _record_factor(tape: Tape, y: Tensor, tensor: Tensor | None, trailing: tuple[int, ...], x: Tensor) -> None:
    if tensor is not None and tape.learned.name_of(tensor) is not None:
        lead = y.ndim - len(trailing)
        rows = math.prod(y.shape[:lead])
        view = Broadcast(Layout(tuple(tensor.shape)), trailing, factor=True)
        tape.record(y, tensor, view, x.expand(y.shape).reshape(rows, *y.shape[lead:]), rows)
