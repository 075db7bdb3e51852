"""Batch norms as one scale and one shift per channel: which of them can be, and what their entries then are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from waterfill.models.cloning import clone
from waterfill.models.module_state import checked_state, first_names, joined
from waterfill.models.patterns import excluded
from waterfill.models.state_dict import CODED_DTYPES, LARGEST
from waterfill.records import Coded, Constant, Layout, NormMean, NormVariance, Origin, Weight


@dataclass(frozen=True, eq=False)
class FoldedNorm:
    """A batch norm that is stored as a scale s and a shift t per channel: `s x + t` in evaluation mode.

    Attributes:
        name: of the module.
        scale: s, float64 [channels].
        shift: t, float64 [channels].
        eps: what the module adds to its variance.
        affine: whether it has a weight and a bias.
    """

    name: str
    scale: Tensor
    shift: Tensor
    eps: float
    affine: bool

    def entry(self, field: str) -> str:
        """Name of `weight`, `bias`, `running_mean` or `running_var` in the state dict."""
        return joined(self.name, field)

    @property
    def scale_name(self) -> str:
        """The entry whose weight is the scale."""
        return self.entry("weight" if self.affine else "running_var")

    @property
    def shift_name(self) -> str:
        """The entry whose weight is the shift."""
        return self.entry("bias" if self.affine else "running_mean")

    @property
    def names(self) -> tuple[str, ...]:
        """The four entries of a norm with affine parameters, or the two of one without."""
        return tuple(self.entry(field) for field in norm_fields(self.affine))

    def origins(self) -> dict[str, Origin]:
        """Where the values of its entries come from."""
        layout = Layout(tuple(self.scale.shape))
        if not self.affine:
            return {
                self.shift_name: NormMean(layout, self.scale_name),
                self.scale_name: NormVariance(layout, self.eps),
            }
        constants = {self.entry("running_mean"): Constant(0.0), self.entry("running_var"): Constant(1.0 - self.eps)}
        return {self.scale_name: Coded(layout), self.shift_name: Coded(layout), **constants}

    def weights(self) -> dict[str, Weight]:
        """Scale and shift in normal form, by the names of their entries."""
        layout = Layout(tuple(self.scale.shape))
        values = {self.scale_name: self.scale, self.shift_name: self.shift}
        return {
            name: Weight(name, layout.to_matrix(value.to(torch.float32).numpy()), layout)
            for name, value in values.items()
        }


def norm_fields(affine: bool) -> tuple[str, ...]:
    """The tensors of a batch norm that decide what it does in evaluation mode."""
    return ("weight", "bias", "running_mean", "running_var") if affine else ("running_mean", "running_var")


def scale_and_shift(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """What a batch norm does in evaluation mode: `s x + t`, `s = weight / sqrt(var + eps)`, `t = bias - mean s`.

    Args:
        norm: a batch norm with running statistics, with or without affine parameters.

    Returns:
        s and t, float64 [channels] on the CPU.
    """
    mean, variance = _double(norm.running_mean), _double(norm.running_var)
    scale = 1 / (variance + norm.eps).sqrt()
    if norm.weight is not None:
        scale = scale * _double(norm.weight)
    shift = -mean * scale
    return scale, shift if norm.bias is None else shift + _double(norm.bias)


def _double(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.detach().to("cpu", torch.float64)


def folded_norms(
    model: nn.Module, *, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> tuple[FoldedNorm, ...]:
    """The batch norms that `inventory` stores as a scale and a shift.

    Not folded are those without running statistics, with a forward of their own that a scale and a shift do not
    replace, with a tensor that the patterns take out or that another module uses too, with a variance + eps that is not
    positive, with a scale or shift that no step reaches or their type cannot hold, or, where these are made from the
    mean and the variance when it is decoded, with such a mean or variance.

    Args:
        model: a network.
        include: as in `inventory`.
        exclude: as in `inventory`.

    Raises:
        WaterfillError: a pattern matches nothing.
        UnsupportedModelError: an entry of the state dict is no tensor with data.
    """
    state = checked_state(model)
    return foldable_norms(model, state, excluded(first_names(state), include, exclude))


def foldable_norms(model: nn.Module, state: Mapping[str, Tensor], left_out: Collection[str]) -> tuple[FoldedNorm, ...]:
    """The norms that `folded_norms` gives, of a state dict that is checked, by the names that the patterns take out."""
    uses: dict[str, set[str]] = defaultdict(set)
    for name, first in first_names(state).items():
        uses[first].add(name)
    prefixes: dict[_BatchNorm, list[str]] = defaultdict(list)
    for prefix, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, _BatchNorm) and None not in (module.running_mean, module.running_var):
            prefixes[module].append(prefix)
    norms = (_folded(module, names, uses, state) for module, names in prefixes.items())
    return tuple(norm for norm in norms if norm is not None and not set(norm.names) & set(left_out))


def _folded(
    module: _BatchNorm, prefixes: Sequence[str], uses: Mapping[str, set[str]], state: Mapping[str, Tensor]
) -> FoldedNorm | None:
    """The folded norm of a module that the model holds under some names, or None where it cannot be folded."""
    affine = module.weight is not None
    if affine != (module.bias is not None) or not 0 <= module.eps < 1:
        return None
    for field in norm_fields(affine):
        names = [joined(prefix, field) for prefix in prefixes]
        if uses.get(names[0]) != set(names) or state[names[0]].dtype not in CODED_DTYPES:
            return None
    if not is_scale_and_shift(module):
        return None
    norm = FoldedNorm(prefixes[0], *scale_and_shift(module), float(module.eps), affine)
    types = [state[norm.scale_name].dtype, state[norm.shift_name].dtype] if affine else []
    limit = min([LARGEST, *(torch.finfo(dtype).max for dtype in types)])
    statistics = () if affine else (_double(module.running_mean), _double(module.running_var))
    fits = bool((norm.scale.abs() <= limit).all() and (norm.shift.abs() <= limit).all())
    reached = all(bool((values.abs() <= LARGEST).all()) for values in statistics)
    return norm if fits and reached and norm.scale.numel() else None


# Norms with a forward of their own

_PROBES = ((4,), (2, 5), (2, 3, 3), (2, 2, 2, 2))
"""Numbers of samples, and sizes of the axes behind the channels."""


def is_scale_and_shift(norm: _BatchNorm) -> bool:
    """Whether a batch norm is a function of `scale_and_shift` alone in evaluation mode.

    One with PyTorch's own forward and without hooks is. Of any other one a copy with drawn statistics is run on drawn
    inputs, before and after it is folded: the answer is about the code, whatever the values are.
    """
    own = type(norm).forward
    hooked = norm._forward_hooks or norm._forward_pre_hooks
    if own.__module__ == _BatchNorm.__module__ and "forward" not in vars(norm) and not hooked:
        return True
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return _survives_folding(clone(norm).eval().to("cpu", torch.float64))
    except Exception:  # noqa: BLE001 - code of a stranger, which may raise anything
        return False


def _survives_folding(norm: nn.Module) -> bool:
    """Whether a norm, whose values are overwritten, answers the same when it is folded."""
    assert isinstance(norm, _BatchNorm)
    generator = torch.Generator().manual_seed(0)
    _write(norm, *(torch.randn(norm.num_features, generator=generator) for _ in range(3)), spread=generator)
    inputs = [
        torch.randn(shape[0], norm.num_features, *shape[1:], generator=generator, dtype=torch.float64)
        for shape in _PROBES
    ]
    before = [_answer(norm, each) for each in inputs]
    scale, shift = scale_and_shift(norm)
    _write_folded(norm, scale, shift)
    pairs = [(old, _answer(norm, each)) for old, each in zip(before, inputs, strict=True) if old is not None]
    return bool(pairs) and all(new is not None and torch.allclose(old, new, rtol=1e-6, atol=1e-6) for old, new in pairs)


def _answer(norm: nn.Module, inputs: Tensor) -> Tensor | None:
    """The output of a norm; None for inputs of a number of axes that it refuses."""
    try:
        found = norm(inputs)
    except (ValueError, RuntimeError):
        return None
    return found if isinstance(found, Tensor) else None


def _write(norm: _BatchNorm, weight: Tensor, bias: Tensor, mean: Tensor, *, spread: torch.Generator) -> None:
    """Give a norm drawn values."""
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(0.5 + torch.rand(mean.shape, generator=spread))
    if norm.weight is not None:
        norm.weight.copy_(weight)
        norm.bias.copy_(bias)


def _write_folded(norm: _BatchNorm, scale: Tensor, shift: Tensor) -> None:
    """Give a norm the vectors that it has when it was folded."""
    assert norm.running_mean is not None and norm.running_var is not None
    if norm.weight is None:
        norm.running_var.copy_(1 / scale.square() - norm.eps)
        norm.running_mean.copy_(-shift / scale)
        return
    norm.running_mean.zero_()
    norm.running_var.fill_(1 - norm.eps)
    norm.weight.copy_(scale)
    norm.bias.copy_(shift)
