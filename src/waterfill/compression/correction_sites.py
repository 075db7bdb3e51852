"""Sites of corrections: the biases and the batch norms of a compressed model, where activations are seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeGuard

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized

from waterfill.compression.activation_moments import ChannelMoments
from waterfill.errors import CalibrationError, WaterfillError
from waterfill.models.module_state import storage_key
from waterfill.models.norms import is_scale_and_shift, norm_fields, scale_and_shift
from waterfill.models.patterns import listed

_MAX_RATIO = 4.0
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True, eq=False)
class BiasSite:
    """The bias of a linear or convolutional layer: the mean of its output is corrected.

    Attributes:
        name: of the module.
        layer: the module in the compressed model.
    """

    name: str
    layer: nn.Module

    @property
    def axis(self) -> int:
        """Axis of the channels, from the end: positions come after them in convolutions."""
        weight = self.layer.weight
        return 1 - weight.ndim if isinstance(weight, Tensor) and not isinstance(self.layer, nn.Linear) else -1

    def watch(self, layer: nn.Module, act: Act) -> torch.utils.hooks.RemovableHandle:
        """Call `act` with every output of `layer`; what it returns becomes the output, unless it is None."""

        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            return act(self, output) if _is_measurable(output) else None

        return layer.register_forward_hook(hook)

    def correct(self, wanted: ChannelMoments, found: ChannelMoments) -> Tensor:
        """Move the bias, and return what must be added to an output that was computed with the old one, float64."""
        bias = self.layer.bias
        assert isinstance(bias, Tensor)
        before = bias.detach().cpu().double()
        _write([bias], [before + wanted.mean - found.mean])
        return (bias.detach().cpu().double() - before).reshape([-1] + [1] * (-1 - self.axis))

    def try_out(self, wanted: ChannelMoments, found: ChannelMoments) -> Tensor:
        """Return the same, but leave the bias as it is."""
        bias = self.layer.bias
        assert isinstance(bias, Tensor)
        before = bias.detach().clone()
        change = self.correct(wanted, found)
        bias.copy_(before)
        return change


@dataclass(frozen=True, eq=False)
class NormSite:
    """A batch norm: mean and variance of its output are corrected by way of the statistics of its input.

    Attributes:
        name: of the module.
        norm: the module in the compressed model.
        scale: s of the original, float64 [channels].
        shift: t of the original, float64 [channels].
    """

    name: str
    norm: _BatchNorm
    scale: Tensor
    shift: Tensor
    axis: int = 1

    def watch(self, layer: nn.Module, act: Act) -> torch.utils.hooks.RemovableHandle:
        """Call `act` with every input of `layer`, before the layer sees it."""

        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            values = args[0] if args else kwargs.get("input")
            if _is_measurable(values):
                act(self, values)

        return layer.register_forward_pre_hook(hook, with_kwargs=True)

    def correct(self, wanted: ChannelMoments, found: ChannelMoments) -> None:
        """Set scale and shift to s' and t'; the layer goes on to use them by itself."""
        alive = wanted.alive & found.alive
        ratio = (wanted.variance / found.variance).clamp(1 / _MAX_RATIO, _MAX_RATIO)
        scale = self.scale * torch.where(alive, ratio, 1.0).sqrt()
        target = self.shift + self.scale * wanted.mean
        write = _write_affine if self.norm.weight is not None else _write_statistics
        write(self.norm, scale, target, found.mean)

    def try_out(self, wanted: ChannelMoments, found: ChannelMoments) -> None:
        """Do the same for one call; the next correction does not build on it."""
        self.correct(wanted, found)


Site: TypeAlias = BiasSite | NormSite
Act: TypeAlias = Callable[[Site, Tensor], Tensor | None]


def _write_affine(norm: _BatchNorm, scale: Tensor, target: Tensor, mean: Tensor) -> None:
    """Set weight and bias so that a norm multiplies by `scale` and takes `mean` to `target`."""
    assert norm.running_mean is not None and norm.running_var is not None
    deviation = (norm.running_var.cpu().double() + norm.eps).sqrt()
    weight = (scale * deviation).to(norm.weight.dtype)
    bias = target - weight.double() / deviation * (mean - norm.running_mean.cpu().double())
    _write([norm.weight, norm.bias], [weight, bias])


def _write_statistics(norm: _BatchNorm, scale: Tensor, target: Tensor, mean: Tensor) -> None:
    """Set the running statistics so that a norm without weight and bias does so."""
    assert norm.running_mean is not None and norm.running_var is not None
    variance = (1 / scale.square() - norm.eps).clamp(min=0).to(norm.running_var.dtype)
    _write(
        [norm.running_var, norm.running_mean],
        [variance, mean - target * (variance.double() + norm.eps).sqrt()],
    )


def _write(tensors: list[Tensor], values: list[Tensor]) -> None:
    """Set every channel of the tensors where all the values are finite in their type; others stay as they are."""
    rounded = [value.to(tensor.dtype) for tensor, value in zip(tensors, values, strict=True)]
    finite = torch.stack([value.isfinite() for value in rounded]).all(dim=0)
    for tensor, value in zip(tensors, rounded, strict=True):
        tensor.copy_(torch.where(finite, value, tensor.cpu()))


def _is_measurable(values: Any) -> TypeGuard[Tensor]:
    if not isinstance(values, Tensor) or values.is_nested or values.layout is not torch.strided:
        return False
    if is_functorch_wrapped_tensor(values):  # of a transformation such as vmap, outside of which it is nothing
        return False
    return values.is_floating_point() and values.ndim > 0 and values.numel() > 0


# Which of them


def find_sites(original: nn.Module, compressed: nn.Module, keep: Collection[str]) -> list[Site]:
    """Everything in the compressed model that can be corrected."""
    twins = dict(original.named_modules())
    uses = Counter(storage_key(t) for module in compressed.modules() for t in _own_tensors(module).values())
    state = compressed.state_dict()
    missing = [name for name in keep if name not in state]
    if missing:
        raise WaterfillError(f"keep names {listed(missing)}; expected names of the state dict. Correct or drop them.")
    kept = {storage_key(state[name]) for name in keep}
    sites: list[Site] = []
    for name, module in compressed.named_modules():
        tensors = _own_tensors(module)
        fields = _fields(module)
        if not fields or not all(f in tensors for f in fields) or is_parametrized(module):
            continue
        twin = twins.get(name)
        if twin is None or type(twin) is not type(module):
            raise CalibrationError(
                f"Layer {name!r} is a {type(module).__name__} in the compressed model, but not in the original; "
                "expected a copy of it. Make the compressed model with clone and fill."
            )
        keys = [storage_key(tensors[field]) for field in fields]
        if all(uses[key] == 1 and key not in kept for key in keys):
            sites.append(_site(name, module, twin))
    return sites


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}


def _fields(module: nn.Module) -> tuple[str, ...]:
    """The tensors that a correction of a module would write; none where there is no correction."""
    if isinstance(module, _BatchNorm):
        if module.running_mean is None or (module.weight is None) != (module.bias is None):
            return ()
        if not is_scale_and_shift(module):
            return ()
        return norm_fields(module.weight is not None)[:2]
    return ("bias",) if isinstance(module, _LAYERS) else ()


def _site(name: str, module: nn.Module, twin: nn.Module) -> Site:
    if isinstance(module, _BatchNorm) and isinstance(twin, _BatchNorm):
        return NormSite(name, module, *scale_and_shift(twin))
    return BiasSite(name, module)
