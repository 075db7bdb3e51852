"""Other ways to make a network small: round to nearest, and GPTQ; their tensors, and the bytes that these take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_grid import GROUP, Grid, Packed, nearest
from waterfill.models.batches import call, split

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
    copy, batches = deepcopy(model).eval(), list(data)
    linear = {f"{name}.weight" for name, module in copy.named_modules() if isinstance(module, nn.Linear)}
    packed = {}
    for name, weight in matrices(copy):
        if name not in linear:
            packed[name] = nearest(weight.detach(), tables or grid)
            _replace(weight, packed[name])
    for stage in stages(copy, batches[0]):
        hessian = second_moment(copy, stage[0], batches)
        for name in stage:
            weight = copy.get_parameter(f"{name}.weight")
            if f"{name}.weight" not in packed and not _is_tied(copy, weight):
                packed[f"{name}.weight"] = gptq_matrix(weight.detach(), hessian, grid, act_order)
                _replace(weight, packed[f"{name}.weight"])
    return _small(model, packed)


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


def stages(model: nn.Module, batch: Any) -> list[list[str]]:
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
    with torch.no_grad(), _watched(model, names, see):
        call(model, split(batch)[0])
    return found


def second_moment(model: nn.Module, name: str, data: Iterable[Any]) -> Tensor:
    """Mean of x^T x over all inputs x of a layer, [in, in] in double precision."""
    total, count = torch.zeros(()), 0

    def see(_: str, x: Tensor) -> None:
        nonlocal total, count
        rows = x.flatten(0, -2).double()
        total, count = total + rows.T @ rows, count + len(rows)
        raise _SeenError

    with torch.no_grad(), _watched(model, [name], see):
        for batch in data:
            try:
                call(model, split(batch)[0])
            except _SeenError:
                continue
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


def _is_tied(model: nn.Module, weight: Tensor) -> bool:
    return any(each.weight is weight for each in model.modules() if isinstance(each, nn.Embedding))


def _replace(weight: nn.Parameter, packed: Packed) -> None:
    with torch.no_grad():
        weight.copy_(packed.unpack())


def _small(model: nn.Module, packed: dict[str, Packed]) -> Small:
    rest = {name: weight.detach().half() for name, weight in model.named_parameters() if name not in packed}
    tensors = {name: each.unpack() for name, each in packed.items()}
    sizes = {name: each.size_bytes for name, each in packed.items()}
    sizes |= {name: 2 * each.numel() for name, each in rest.items()}
    return Small(tensors | {name: each.float() for name, each in rest.items()}, sizes)
