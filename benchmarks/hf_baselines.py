"""Other ways to make a network small: round to nearest, and GPTQ; their tensors, and the bytes that these take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hf_grid import GROUP, Grid, Packed, nearest
from waterfill.models.batches import split

Call = tuple[tuple[Any, ...], dict[str, Any]]
Calls = list[Call]
Found = dict[nn.Parameter, Packed]

DAMPING = 0.01
"""Part of the mean of the diagonal that GPTQ adds to it."""

COLUMNS_AT_ONCE = 128
"""Columns after these learn of their errors in one product."""


@dataclass(frozen=True, eq=False)
class Small:
    """A network made small.

    Attributes:
        tensors: what came back, by the names of its parameters.
        sizes: bytes by name: packed matrices with their scales, and the rest in half precision, without headers; or
            under an empty name those of a whole file.
    """

    tensors: dict[str, Tensor]
    sizes: dict[str, int]

    def size_bytes(self, unused: str = "") -> int:
        """All bytes, without those of a module that is not used."""
        return sum(size for name, size in self.sizes.items() if not unused or not name.startswith(f"{unused}."))


def round_to_nearest(model: nn.Module, grid: Grid) -> Small:
    """Every matrix in groups with scales."""
    return _small(model, {name: nearest(weight.detach(), grid) for name, weight in matrices(model)})


def gptq(model: nn.Module, data: Iterable[Any], grid: Grid, act_order: bool, tables: Grid | None = None) -> Small:
    """GPTQ of the linear layers, in the order in which they run, on what the layers before them now give.

    Blocks run one after the other on inputs that are kept, so every layer runs about four times for every batch.

    Args:
        model: stays as it is.
        data: batches to calibrate on.
        grid: of the linear layers.
        act_order: columns with the largest inputs first; then scales are fitted before.
        tables: grid of all other matrices (embeddings), rounded to nearest; by default the same.

    Source:
        Frantar et al. 2023, GPTQ. The options are those of its reference code: `act_order` with `static_groups`,
        scales of least squared error.
    """
    copy = deepcopy(model).eval()
    packed = _rounded_tables(copy, tables or grid)
    way = partial(gptq_matrix, grid=grid, act_order=act_order)
    with torch.no_grad():
        for part, calls in parts(copy, data):
            _compensate(part, calls, way, packed)
    names = {weight: name for name, weight in copy.named_parameters()}
    return _small(model, {names[weight]: each for weight, each in packed.items()})


def _rounded_tables(model: nn.Module, grid: Grid) -> Found:
    """Round matrices of other layers than linear ones to nearest, also those that a linear layer shares."""
    linear = {module.weight for module in model.modules() if isinstance(module, nn.Linear)}
    tables = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    packed = {}
    for _, weight in matrices(model):
        if weight in tables or weight not in linear:
            packed[weight] = nearest(weight.detach(), grid)
            _replace(weight, packed[weight])
    return packed


def _compensate(part: nn.Module, calls: Calls, way: Callable[[Tensor, Tensor], Packed], packed: Found) -> None:
    """Quantize the linear layers of a module stage by stage, without those that are done."""
    for stage in stages(part, calls[0]):
        weights: list[Any] = [part.get_parameter(f"{name}.weight" if name else "weight") for name in stage]
        weights = [weight for weight in weights if weight not in packed]
        if not weights:
            continue
        hessian = second_moment(part, stage[0], calls)
        for weight in weights:
            packed[weight] = way(weight.detach(), hessian)
            _replace(weight, packed[weight])


def gptq_matrix(weight: Tensor, hessian: Tensor, grid: Grid, act_order: bool = False) -> Packed:
    """Quantize column by column; the columns after it make up for the error of each.

    Args:
        weight: [out, in].
        hessian: second moment of the inputs, [in, in].
        grid: its integers.
        act_order: columns of the largest second moment first.
    """
    rest, hessian = weight.clone(), hessian.double().clone()
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = 1
    rest[:, dead] = 0
    order = hessian.diagonal().argsort(descending=True) if act_order else torch.arange(len(hessian))
    fitted = [grid.fit(group) for group in rest.split(GROUP, 1)] if act_order else []
    factor = _inverse_factor(hessian[order][:, order]).float()
    codes, rest = torch.empty_like(rest), rest[:, order]
    for start in range(0, len(order), COLUMNS_AT_ONCE):
        stop = min(start + COLUMNS_AT_ONCE, len(order))
        errors = torch.empty_like(rest[:, start:stop])
        for j in range(start, stop):
            if not act_order and j % GROUP == 0:
                fitted.append(grid.fit(rest[:, j : j + GROUP]))
            column, place = rest[:, j : j + 1], int(order[j])
            codes[:, place : place + 1], found = grid.rounded(column, *fitted[place // GROUP])
            error = (column - found) / factor[j, j]
            rest[:, j:stop] -= error * factor[j, j:stop]
            errors[:, j - start : j - start + 1] = error
        rest[:, stop:] -= errors @ factor[start:stop, stop:]
    scales, zeros = (torch.cat(each, 1) for each in zip(*fitted, strict=True))
    return Packed.of(grid, codes, scales, zeros)


def _inverse_factor(hessian: Tensor) -> Tensor:
    """Upper triangular U with H^-1 = U^T U, of the damped H."""
    damping = DAMPING * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=hessian.dtype)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian + damping))
    return torch.linalg.cholesky(inverse, upper=True)


# Networks


def matrices(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters with two axes, tied ones once."""
    return ((name, weight) for name, weight in model.named_parameters() if weight.ndim == 2)


def values(model: nn.Module) -> int:
    """Number of parameters, tied ones once."""
    return sum(weight.numel() for weight in model.parameters())


def parts(model: nn.Module, data: Iterable[Any]) -> Iterator[tuple[nn.Module, Calls]]:
    """The blocks of a network one after the other, then the network, each with the arguments of all its calls.

    What comes of a block is computed when the next one is asked for, so that it may change before.
    """
    if hasattr(model, "config"):
        model.config.use_cache = False  # blocks run several times
    whole = [_arguments(batch) for batch in data]
    blocks = max((each for each in model.modules() if isinstance(each, nn.ModuleList)), key=len, default=())
    calls = _calls(model, blocks[0], whole) if blocks else []
    for block in blocks:
        yield block, calls
        calls = [((_first(block(*args, **options)), *args[1:]), options) for args, options in calls]
    yield model, whole


def _arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    inputs = split(batch)[0]
    return ((), dict(inputs)) if isinstance(inputs, Mapping) else ((inputs,), {})


def _calls(model: nn.Module, block: nn.Module, whole: Calls) -> Calls:
    """Arguments of a block in all calls of the network."""
    found = []

    def see(_: nn.Module, args: Any, options: Any) -> None:
        found.append((args, options))
        raise _SeenError

    handle = block.register_forward_pre_hook(see, with_kwargs=True)
    try:
        for each in whole:
            _until_seen(model, each)
    finally:
        handle.remove()
    return found


def _until_seen(model: nn.Module, call: Call) -> None:
    with suppress(_SeenError):
        model(*call[0], **call[1])


def _first(result: Any) -> Tensor:
    tensor: Tensor = result if isinstance(result, Tensor) else result[0]
    return tensor


def stages(model: nn.Module, call: Call) -> list[list[str]]:
    """Linear layers in the order in which they run; those that follow each other on the same input together."""
    found: list[list[str]] = []
    inputs: list[Tensor] = []

    def see(name: str, x: Tensor) -> None:
        if inputs and inputs[-1] is x:
            found[-1].append(name)
        else:
            found.append([name])
            inputs.append(x)

    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    with _watched(model, names, see):
        model(*call[0], **call[1])
    return found


def second_moment(model: nn.Module, name: str, calls: Calls) -> Tensor:
    """Mean of x^T x over all inputs x of a layer, [in, in] in double precision."""
    total, count = torch.zeros(()), 0

    def see(_: str, x: Tensor) -> None:
        nonlocal total, count
        rows = x.flatten(0, -2)
        total, count = total + (rows.T @ rows).double(), count + len(rows)
        raise _SeenError

    with _watched(model, [name], see):
        for each in calls:
            _until_seen(model, each)
    return total / count


class _SeenError(Exception):
    """A pass need not go on."""


@contextmanager
def _watched(model: nn.Module, names: Iterable[str], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    def hook(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda _, inputs: see(name, inputs[0])

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _replace(weight: nn.Parameter, packed: Packed) -> None:
    with torch.no_grad():
        weight.copy_(packed.unpack())


def _small(model: nn.Module, packed: dict[str, Packed]) -> Small:
    rest = {name: weight.detach().half() for name, weight in model.named_parameters() if name not in packed}
    tensors = {name: each.unpack() for name, each in packed.items()}
    sizes = {name: each.size_bytes for name, each in packed.items()}
    sizes |= {name: 2 * each.numel() for name, each in rest.items()}
    return Small(tensors | {name: each.float() for name, each in rest.items()}, sizes)
