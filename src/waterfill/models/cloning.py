"""Copies of models that compute with their own tensors, hooks and attributes that refer to the model included."""

from __future__ import annotations

import copy
import functools
import types
import warnings
import weakref
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.errors import UnsupportedModelError
from waterfill.models.module_state import has_storage

_COPY_ERRORS = (TypeError, RuntimeError, AttributeError, ValueError, OSError, copy.Error)
_PLAIN = (Tensor, nn.Parameter)
_CONTAINERS = (list, tuple, set, frozenset)
_FORWARD_HOOKS = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks")
_Cached = type(functools.lru_cache(id))


def clone(model: nn.Module, device: torch.device | None = None) -> nn.Module:
    """Copy a model for trial compressions; nothing that is done to the copy reaches the model.

    Modes and hooks are copied as they are; functions among hooks and attributes that refer to the model, its tensors or
    containers (by a closure, a default or a global name) refer to those of the copy. Views of one memory stay views of
    one memory. Gradients are not copied. A tensor kept as a plain attribute that was computed from parameters, as in
    the old weight norm, is copied as a constant until the next forward pass computes it again.

    Args:
        model: the network.
        device: where the tensors of the copy are, of attributes and closures, too; None for where those of the model
            are.

    Raises:
        UnsupportedModelError: the model holds something that cannot be copied, or that copies as itself.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about how PyTorch copies its own, which no caller can mend
            return _clone(model, device)
    except _COPY_ERRORS as error:
        raise UnsupportedModelError(
            f"The model {type(model).__name__} cannot be copied ({error}); expected one that copy.deepcopy accepts. "
            "Take what cannot be copied (locks, files, handles) out of its attributes."
        ) from error


def _clone(model: nn.Module, device: torch.device | None) -> nn.Module:
    copied = dict(_reachable(model, through_functions=False))
    everything = dict(_reachable(model, through_functions=True))
    memo: dict[int, Any] = {}
    tensors = [each for each in everything.values() if isinstance(each, Tensor)]
    if device is not None:
        _move_tensors(tensors, device, memo)
    _copy_tensors([each for each in tensors if id(each) not in memo], memo)
    functions = [each for each in everything.values() if isinstance(each, types.FunctionType)]
    rebound = [(each, _unbound(each, copied)) for each in functions if _refers(each, copied)]
    memo |= {id(function): new for function, new in rebound}
    caches = [each for each in everything.values() if isinstance(each, _Cached) and _refers(each, copied)]
    late: list[list[Any]] = [[] for _ in caches]
    memo |= {id(each): _cached(each, cell) for each, cell in zip(caches, late, strict=True)}
    twin = copy.deepcopy(model, memo)
    for function, new in rebound:
        _bind(function, new, copied, memo)
    for each, cell in zip(caches, late, strict=True):
        cell.append(copy.deepcopy(each.__wrapped__, memo))
    for module in twin.modules():
        for name, value in vars(module).items():
            if isinstance(value, weakref.ref) and id(value()) in memo:
                vars(module)[name] = weakref.ref(memo[id(value())])
    _copy_hooks(model, twin, memo)
    _make_leaves(model, twin)
    if device is not None:
        twin.to(device)  # what copies itself, such as scripted modules
    _check_independent(model, twin)
    return twin


def _copy_hooks(model: nn.Module, twin: nn.Module, memo: dict[int, Any]) -> None:
    """Give copies of scripted modules the forward hooks of these, which copying their code leaves behind."""
    for original, other in zip(model.modules(), twin.modules(), strict=True):
        if isinstance(original, torch.jit.ScriptModule):
            for name in _FORWARD_HOOKS:
                getattr(other, name).update(copy.deepcopy(getattr(original, name), memo))


def _make_leaves(model: nn.Module, twin: nn.Module) -> None:
    """Cut the parameters of scripted modules off from those of which autograd takes them for copies."""
    for original, parameter in zip(model.parameters(), twin.parameters(), strict=True):
        if not parameter.is_leaf:
            parameter.detach_().requires_grad_(original.requires_grad)


def _check_independent(model: nn.Module, twin: nn.Module) -> None:
    """Check that a copy has memory of its own.

    Raises:
        UnsupportedModelError: a tensor copies as itself.
    """
    memory: dict[int, str] = {}
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor) and has_storage(tensor):
            memory[tensor.untyped_storage().data_ptr()] = name
    for tensor in (*twin.parameters(), *twin.buffers()):
        if has_storage(tensor) and tensor.untyped_storage().data_ptr() in memory:
            name = memory[tensor.untyped_storage().data_ptr()]
            raise UnsupportedModelError(
                f"Tensor {name!r} is the same memory in a copy of the model; expected copy.deepcopy to give it memory "
                "of its own. Correct the __deepcopy__ of its module."
            )


# What a model refers to


def _reachable(root: Any, *, through_functions: bool) -> Iterator[tuple[int, Any]]:
    """Everything that an object refers to by attributes, containers and, if asked for, functions; each with its id."""
    seen: set[int] = set()
    ahead = [root]
    while ahead:
        each = ahead.pop()
        if id(each) in seen or isinstance(each, type | types.ModuleType | str | bytes | int | float | None):
            continue
        seen.add(id(each))
        yield id(each), each
        if through_functions or not isinstance(each, types.FunctionType):
            ahead += _parts(each)


def _parts(value: Any) -> Iterable[Any]:
    """What an object refers to directly."""
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values(), *_attributes(value)]
    if isinstance(value, _CONTAINERS):
        return [*value, *_attributes(value)]
    if isinstance(value, types.FunctionType):
        return [*(cell for _, cell in _cells(value)), *_defaults(value), *_globals_of(value).values()]
    if isinstance(value, types.MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    return _attributes(value)


def _attributes(value: Any) -> list[Any]:
    found = getattr(value, "__dict__", None)
    return list(found.values()) if isinstance(found, dict) else []


def _cells(function: types.FunctionType) -> list[tuple[int, Any]]:
    """Contents of the closure, by index; without cells that are still empty."""
    found = []
    for index, cell in enumerate(function.__closure__ or ()):
        try:
            found.append((index, cell.cell_contents))
        except ValueError:
            continue
    return found


def _defaults(function: types.FunctionType) -> list[Any]:
    return [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]


def _globals_of(function: types.FunctionType) -> dict[str, Any]:
    """Models, tensors and containers that a function knows by a global name."""
    kinds = (nn.Module, Tensor, list, dict, tuple)
    names = [name for name in function.__code__.co_names if name in function.__globals__]
    return {name: function.__globals__[name] for name in names if isinstance(function.__globals__[name], kinds)}


def _refers(value: Any, copied: Mapping[int, Any]) -> bool:
    """Whether an object refers to something that is copied and could change."""
    return any(
        key in copied and not isinstance(each, tuple | frozenset | types.FunctionType)
        for key, each in _reachable(value, through_functions=True)
    )


# Functions


def _unbound(function: types.FunctionType, copied: Mapping[int, Any]) -> types.FunctionType:
    """A function with empty cells in the place of those that will hold copies."""
    cells = list(function.__closure__ or ())
    for index, content in _cells(function):
        if _refers(content, copied):
            cells[index] = types.CellType()
    moved = any(_refers(each, copied) for each in _globals_of(function).values())
    names = dict(function.__globals__) if moved else function.__globals__
    new = types.FunctionType(function.__code__, names, function.__name__, None, tuple(cells))
    new.__qualname__, new.__module__, new.__doc__ = function.__qualname__, function.__module__, function.__doc__
    return new


def _bind(
    function: types.FunctionType, new: types.FunctionType, copied: Mapping[int, Any], memo: dict[int, Any]
) -> None:
    """Give a new function copies of all that the old one refers to."""
    for index, content in _cells(function):
        cell = (new.__closure__ or ())[index]
        if cell is not (function.__closure__ or ())[index]:
            cell.cell_contents = copy.deepcopy(content, memo)
    new.__defaults__ = copy.deepcopy(function.__defaults__, memo)
    new.__kwdefaults__ = copy.deepcopy(function.__kwdefaults__, memo)
    new.__dict__.update(copy.deepcopy(function.__dict__, memo))
    for name, value in _globals_of(function).items():
        if _refers(value, copied):
            new.__globals__[name] = copy.deepcopy(value, memo)


def _cached(function: Any, cell: list[Any]) -> Any:
    """A cached function with an empty cache, that calls what will be in a cell."""
    return functools.lru_cache(**function.cache_parameters())(lambda *args, **kwargs: cell[0](*args, **kwargs))


# Tensors


def _copy_tensors(tensors: Collection[Tensor], memo: dict[int, Any]) -> None:
    """Copy what copy.deepcopy refuses, or would tear apart: computed tensors, and views of one memory."""
    users: dict[int, set[int]] = defaultdict(set)
    plain = [each for each in tensors if type(each) in _PLAIN and has_storage(each) and not each.is_quantized]
    for each in plain:
        users[each.untyped_storage().data_ptr()].add(id(each))
    for each in plain:
        shared = len(users[each.untyped_storage().data_ptr()]) > 1
        if each.is_inference():
            new = each.clone()
        elif shared:
            new = copy.deepcopy(each.detach(), memo)
        elif not each.is_leaf:
            new = each.detach().clone()
        else:
            continue
        memo[id(each)] = _as(each, new)


def _move_tensors(tensors: Collection[Tensor], device: torch.device, memo: dict[int, Any]) -> None:
    """Copy tensors to a device; views of one memory are views of one memory there."""
    users: dict[int, list[Tensor]] = defaultdict(list)
    for each in tensors:
        if type(each) in _PLAIN and has_storage(each) and not each.is_quantized:
            users[each.untyped_storage().data_ptr()].append(each)
    for some in users.values():
        if len(some) == 1:
            memo[id(some[0])] = _as(some[0], some[0].detach().to(device, copy=True))
            continue
        whole = torch.empty(0, dtype=torch.uint8, device=some[0].device)
        memory = whole.set_(some[0].untyped_storage()).to(device, copy=True).untyped_storage()
        for each in some:
            new = torch.empty(0, dtype=each.dtype, device=device)
            memo[id(each)] = _as(each, new.set_(memory, each.storage_offset(), each.shape, each.stride()))


def _as(tensor: Tensor, values: Tensor) -> Tensor:
    """Values as a tensor of the same kind."""
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(values, tensor.requires_grad)
    return values.requires_grad_(tensor.requires_grad and tensor.is_leaf)
