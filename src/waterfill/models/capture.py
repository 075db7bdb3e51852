"""Watch a forward pass and note every use of every learned tensor, in the normal form of `uses`.

```
model --call inside a Tape--> uses: x [rows, ...] of every learned tensor, and the site where its gradient is read
                         `--> missed: tensors that also went into a function this module does not know
```
Functions are watched, not modules: a tensor that modules share, or that a model uses on its own, is seen as well.
"""

from __future__ import annotations

import glob
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.overrides import TorchFunctionMode

from waterfill.models.functions import DETACHING, HANDLERS, LOOK_AT_FIRST, is_in_place
from waterfill.models.module_state import has_storage, storage_key
from waterfill.models.norms import folded_norms
from waterfill.models.state_dict import CODED_DTYPES
from waterfill.models.torch_module import inventory
from waterfill.models.uses import Use, View
from waterfill.records import Layout


@dataclass(frozen=True, eq=False)
class Variables:
    """The learned tensors of a model as its forward pass meets them.

    Attributes:
        tensors: by name in the state dict: parameters, and the scale and shift of every folded batch norm.
        layouts: how each is read as a matrix.
        norms: names of the scale and the shift of the folded norm, by the identity of its running variance.
        twins: names of other parameters that are the same memory as a learned one, by their identity.
    """

    tensors: Mapping[str, Tensor]
    layouts: Mapping[str, Layout]
    norms: Mapping[int, tuple[str, str]]
    twins: Mapping[int, str] = field(default_factory=dict)
    names: Mapping[int, str] = field(init=False)

    def __post_init__(self) -> None:
        own = {id(tensor): name for name, tensor in self.tensors.items()}
        object.__setattr__(self, "names", {**self.twins, **own})


def variables(model: nn.Module, *, fold_norms: bool = True) -> Variables:
    """List the learned tensors of a model.

    Args:
        model: the network.
        fold_norms: whether batch norms count as a scale and a shift, as in `inventory`.

    Returns:
        Every tensor of `Inventory.weights` that is a parameter, or the scale or shift of a folded norm.
    """
    infinite = [glob.escape(name) for name, tensor in model.state_dict().items() if _is_masked(name, tensor, model)]
    weights = inventory(model, fold_norms=fold_norms, exclude=infinite).weights
    names = _names_by_memory(model, weights)
    tensors: dict[str, Tensor] = {}
    for parameter in model.parameters():
        if has_storage(parameter) and storage_key(parameter) in names:
            tensors.setdefault(names[storage_key(parameter)], parameter)
    norms: dict[int, tuple[str, str]] = {}
    for norm in folded_norms(model) if fold_norms else ():
        variance = model.get_submodule(norm.name).running_var
        assert isinstance(variance, Tensor)
        dtype = variance.dtype if torch.is_floating_point(variance) else torch.float32
        for name, value in ((norm.scale_name, norm.scale), (norm.shift_name, norm.shift)):
            tensors[name] = value.to(variance.device, dtype).requires_grad_()
        norms[id(variance)] = norm.scale_name, norm.shift_name
    ordered = {name: tensors[name] for name in weights if name in tensors}
    twins = {
        id(parameter): names[storage_key(parameter)]
        for parameter in model.parameters()
        if has_storage(parameter) and storage_key(parameter) in names
    }
    twins = {key: name for key, name in twins.items() if name in ordered}
    return Variables(ordered, {name: weights[name].layout for name in ordered}, norms, twins)


def _names_by_memory(model: nn.Module, weights: Mapping[str, Any]) -> dict[Hashable, str]:
    """Names in the state dict, which need not be those of the modules, by the memory that they mean."""
    state = model.state_dict()
    return {storage_key(state[name]): name for name in weights if has_storage(state[name])}


def _is_masked(name: str, tensor: Tensor, model: nn.Module) -> bool:
    """Whether a tensor is a buffer with values that are not finite, which cannot be quantized (an attention mask)."""
    is_buffer = name not in dict(model.named_parameters(remove_duplicate=False))
    return is_buffer and tensor.dtype in CODED_DTYPES and not bool(tensor.isfinite().all())


class Tape(TorchFunctionMode):
    """While it is entered, forward passes leave their uses here, and compute what the model computes.

    Three things are done in another, equal way: folded batch norms as `s x + t`, recurrent layers step by step, and
    embeddings without their padding index, which changes gradients only: an error in the padding row does reach the
    output. `torch.no_grad` inside the model is not obeyed, because a layer under it matters as well; nor are `detach`
    and `.data` of a learned tensor where the result is only read, nor hooks on tensors, which change gradients only.

    Args:
        learned: what to watch for.
        values: tensors that stand for learned ones, by name; then nothing is recorded.

    Attributes:
        uses: by name.
        missed: names that also went into functions that are not known.
        sites: where to ask for gradients; `Use.site` counts here.
        site_values: number of values of all sites together.
    """

    def __init__(self, learned: Variables, values: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.uses: dict[str, list[Use]] = {}
        self.missed: set[str] = set()
        self.sites: list[GradientEdge] = []
        self.site_values = 0
        self._learned = learned
        self._values = values
        self._detached: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Handle one function call of the model."""
        del types
        if func in DETACHING and self.name_of(args[0]) is not None:
            return self._detach(func, args[0])
        if self._detached and not is_in_place(func):
            args, kwargs = self._attached(args), self._attached(kwargs or {})
        handler = HANDLERS.get(func)
        if handler is not None:
            return handler(self, func, *args, **(kwargs or {}))
        return self.pass_through(func, *args, **(kwargs or {}))

    def _detach(self, func: Callable[[Tensor], Tensor], learned: Tensor) -> Tensor:
        """Detach a learned tensor, and keep in mind which it is: what reads the result reads the tensor."""
        result = func(learned)
        self._detached[id(result)] = result, learned
        return result

    def _attached(self, values: Any) -> Any:
        """Put learned tensors in the place of those that were detached from them."""
        if isinstance(values, Tensor):
            return self._detached.get(id(values), (values, values))[1]
        if type(values) in (tuple, list):
            return type(values)(map(self._attached, values))
        return {key: self._attached(value) for key, value in values.items()} if type(values) is dict else values

    def pass_through(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function that is not known; learned tensors that its result depends on are missed."""
        result = func(*args, **kwargs)
        if self.name_of(result) is None and _has_gradient(result):
            self.miss(*(args[:1] if func in LOOK_AT_FIRST else args), *kwargs.values())
        return result

    def name_of(self, value: Any) -> str | None:
        """Name of a learned tensor; None for everything else."""
        return self._learned.names.get(id(value))

    def value(self, tensor: Tensor) -> Tensor:
        """What stands for a learned tensor in this pass: its substitute, or itself."""
        name = self.name_of(tensor)
        return tensor if name is None or self._values is None else self._values.get(name, tensor)

    def folded(self, running_var: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """Learned scale and shift of the norm with this running variance; None where it is not folded."""
        names = self._learned.norms.get(id(running_var))
        return None if names is None else (self._learned.tensors[names[0]], self._learned.tensors[names[1]])

    def miss(self, *values: Any) -> None:
        """Note that every learned tensor among `values` is used in a way that is not recorded."""
        for value in values:
            if isinstance(value, Tensor):
                name = self.name_of(value)
                if name is not None:
                    self.missed.add(name)
            elif isinstance(value, tuple | list):
                self.miss(*value)
            elif isinstance(value, Mapping):
                self.miss(*value.values())

    def in_series(self) -> set[str]:
        """Names of tensors with a use whose input depends on another use, as in recurrent layers and tied tables.

        An output is linear in a tensor's uses taken one by one, but not in the tensor itself where they are in series.
        Terms such as biases have no input, and never are.
        """
        found = set()
        for name, uses in self.uses.items():
            sites = {self.sites[use.site].node for use in uses}
            products = {self.sites[use.site].node for use in uses if use.x is not None}
            if len(sites) > 1 and any(step in sites for step in steps_before(products)):
                found.add(name)
        return found

    def record(self, y: Tensor, tensor: Tensor, view: View, x: Callable[[], Tensor] | None, lead: int) -> None:
        """Note that `tensor` was used to compute `y`; nothing is noted for a tensor that is not learned.

        Args:
            y: output of the layer.
            tensor: any tensor.
            view: how the layer uses it.
            x: gives the input of the layer [rows, ...]; None where it is 1.
            lead: number of leading axes of y that count rows.
        """
        name = self.name_of(tensor)
        if name is None or self._values is not None:
            return
        if not y.requires_grad:  # inside of a transformation such as vmap, whose results have no edges
            self.missed.add(name)
            return
        edge = get_gradient_edge(y)
        if not self.sites or self.sites[-1] != edge:
            self.sites.append(edge)
            self.site_values += y.numel()
        with torch.no_grad():
            read = None if x is None else x().detach()
            if read is not None and read.is_floating_point():
                read = read.to(y.dtype)  # as it was promoted beside a tensor of another precision
            use = Use(len(self.sites) - 1, view, read, lead, math.prod(y.shape[:lead]))
            self.uses.setdefault(name, []).append(use)


def _has_gradient(result: Any) -> bool:
    if isinstance(result, Tensor):
        return result.requires_grad
    return isinstance(result, tuple | list) and any(map(_has_gradient, result))


def steps_before(steps: Iterable[Node]) -> Iterator[Node]:
    """Every step of the passes that lead to these steps, each once; one of these only where it leads to another."""
    ahead = list(steps)
    seen: set[Node] = set()
    while ahead:
        for node, _ in ahead.pop().next_functions:
            if node is not None and node not in seen:
                seen.add(node)
                ahead.append(node)
                yield node
