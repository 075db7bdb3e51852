"""Curvature of elementwise functions, taken out of a forward pass to be sent back on its own.

```
x --f--> y     forward: the same;  backward: f'(x) g, with f'(x) a constant, so that a second pass finds no f'' here
               a second derivative of the loss by x is g f''(x): sent back as the product of two random signals
```
What is not on the list keeps its curvature in the pass, where `curvature` asks for it by `R v`. Functions that norms
and softmax are written with, such as exp and powers, are not on it: their parts are large, and their sum is small.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from waterfill.distortion.probe_vectors import random_signs
from waterfill.models.capture import Tape, Variables

ELEMENTWISE = frozenset(
    {
        F.celu,
        F.elu,
        F.gelu,
        F.hardswish,
        F.logsigmoid,
        F.mish,
        F.selu,
        F.silu,
        F.softplus,
        F.softsign,
        F.tanhshrink,
        torch.celu,
        torch.cos,
        torch.selu,
        torch.sigmoid,
        torch.sin,
        torch.tanh,
        Tensor.cos,
        Tensor.sigmoid,
        Tensor.sin,
        Tensor.tanh,
    }
)
"""Functions of one number, applied to every entry of their first argument; piecewise linear ones need not be here."""


@dataclass(frozen=True, eq=False)
class Bend:
    """One call of an elementwise function.

    Attributes:
        x: where to send from its input.
        y: where to ask for the gradient at its output.
        second: f''(x).
    """

    x: GradientEdge
    y: GradientEdge
    second: Tensor


class BendingTape(Tape):
    """A tape that also takes the curvature of elementwise functions out of the pass.

    Attributes:
        bends: their calls.
    """

    def __init__(self, learned: Variables) -> None:
        super().__init__(learned)
        self.bends: list[Bend] = []

    def pass_through(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function; take the curvature out where it is elementwise and its input is no learned tensor."""
        if func not in ELEMENTWISE or not args or "out" in kwargs or _checkpointed():
            return super().pass_through(func, *args, **kwargs)
        x, *others = args
        numbers = not any(isinstance(other, Tensor) for other in (*others, *kwargs.values()))
        if not (numbers and isinstance(x, Tensor) and x.is_floating_point() and x.requires_grad):
            return super().pass_through(func, *args, **kwargs)
        if self.name_of(x) is not None:
            return super().pass_through(func, *args, **kwargs)
        in_place = kwargs.pop("inplace", False)
        y = self._bent(x, lambda z: func(z, *others, **kwargs))
        return x.copy_(y) if in_place else y

    def _bent(self, x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        """Call an elementwise function."""
        value, first, second = derivatives(f, x)
        y: Tensor = _Straight.apply(x, (value, first))  # type: ignore[no-untyped-call]
        self.bends.append(Bend(get_gradient_edge(x), get_gradient_edge(y), second))
        return y


def _checkpointed() -> bool:
    """Whether what is saved for the way back goes to hooks: checkpoints run a part again then, without the tape."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def derivatives(f: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """An elementwise function and its first two derivatives, each of the shape of x.

    Args:
        f: the function.
        x: any shape.

    Example:
        >>> [float(d) for d in derivatives(torch.square, torch.tensor(3.0))]
        [9.0, 6.0, 2.0]
    """
    with torch.enable_grad():
        z = x.detach().requires_grad_()
        y = f(z)
        (first,) = torch.autograd.grad(y, z, torch.ones_like(y), create_graph=True)
        second = torch.zeros_like(first)
        if first.requires_grad:
            (second,) = torch.autograd.grad(first, z, torch.ones_like(first))
    return y.detach(), first.detach(), second


class _Straight(torch.autograd.Function):
    """A function whose slope is a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, found: tuple[Tensor, Tensor]) -> Tensor:
        del x
        value, slope = found  # in a tuple, so that the result is no view of an input and can be changed in place
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return gradient * slope, None


@dataclass(frozen=True, eq=False)
class Roots:
    """The second derivatives of the losses by the inputs of elementwise functions.

    Attributes:
        at: where to send from each input.
        values: `g f''(x)` of each.
    """

    at: list[GradientEdge]
    values: list[Tensor]

    def signals(self, generator: torch.Generator) -> tuple[list[Tensor], list[Tensor]]:
        """Draw two signals from all inputs whose product has these second derivatives as its expectation, diagonal.

        `sqrt|eps| v` and `sign(eps) sqrt|eps| v` with the same random signs v: what comes back of them are sums over
        the inputs, `s = sum_k sqrt|eps_k| v_k J_k` and t likewise, and `E s t = sum_k eps_k J_k^2`. Pairs of inputs
        with curvatures of opposite sign cancel in s t for every draw.

        Source: Martens, Sutskever, Swersky 2012, "Estimating the Hessian by back-propagating curvature", section 3.
        """
        one = [value.abs().sqrt() * random_signs(value, generator) for value in self.values]
        return one, [signal * value.sign() for signal, value in zip(one, self.values, strict=True)]


def roots(bends: list[Bend], slopes: tuple[Tensor | None, ...]) -> Roots:
    """Find the inputs where the loss is curved.

    Args:
        bends: the calls.
        slopes: derivatives of the losses by their outputs; None where there are none.
    """
    at, values = [], []
    for bend, slope in zip(bends, slopes, strict=True):
        if slope is not None:
            value = slope.detach() * bend.second
            if bool(value.any()):
                at.append(bend.x)
                values.append(value)
    return Roots(at, values)
