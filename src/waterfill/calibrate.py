"""Statistics correction: give every norm and bias of a compressed model back the means and variances it had."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any, TypeAlias, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized

from waterfill.errors import CalibrationError, WaterfillError
from waterfill.models.batches import (
    Inputs,
    as_batches,
    call,
    evaluation,
    map_tensors,
    num_samples,
    split,
    take,
    tensors_in,
)
from waterfill.models.patterns import listed
from waterfill.models.torch_module import norm_fields, scale_and_shift, storage_key
from waterfill.protocols import Progress

BUDGET_BYTES = 1 << 30
"""Memory for the activations of all samples together."""

_LIVE_LAYERS = 4
"""How many times the largest input and output of a module are in memory at once, at the most."""
_FEW_SAMPLES = 8
"""How many samples measure it."""
_MAX_RATIO = 4.0
_DEAD = 1e-6
"""A channel with less than this share of its layer's mean variance is dead."""
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def correct_statistics(
    original: nn.Module,
    compressed: nn.Module,
    data: Iterable[Any],
    *,
    keep: Collection[str] = (),
    progress: Progress | None = None,
) -> None:
    """Correct the batch norms and biases of a compressed model in place, so that its activations keep their statistics.

    With s and t the scale and shift of a batch norm in the original model, m and v the mean and variance of its input
    there, m' and v' those in the compressed model, a norm becomes `s' = s sqrt(v / v')`, `t' = t + s m - s' m'`, with
    the ratio v / v' in [1/4, 4]: the mean and variance of its output are those of the original. A dead channel, whose
    variance is next to nothing in one of the models, keeps the scale s. The bias of a linear or convolutional layer
    moves by the difference of the mean outputs. All this goes layer by layer in one pass, so that every layer is
    corrected on what the corrected layers before it hand on. Both models run in evaluation mode and without labels.

    A layer that is called several times in a pass (recurrent networks, shared heads) gets one correction, from its
    statistics over all the calls of a preliminary pass. There every call is corrected by itself, so that what follows
    is measured on corrected inputs; the layers that are called once are corrected again in the final pass. Not
    corrected: norms without running statistics, functional norms, biases inside LSTMs and other modules that do not
    call their parts, parametrized modules, and tensors that several modules use.

    All samples flow as one batch, as many as fit into `BUDGET_BYTES`; where batches cannot be joined, the first one.

    Args:
        original: the network as it was; it is left untouched.
        compressed: a copy of it with other weights. Its norms may be folded or not; only `weight` and `bias` of a norm
            are written, or `running_mean` and `running_var` where it has no others, and `bias` of other layers.
        data: batches, with or without targets.
        keep: names in the state dict of tensors of `compressed` that stay as they are.
        progress: called with ("statistics", done, total) for every corrected layer.

    Raises:
        CalibrationError: the batches do not fit the model, or `compressed` is no copy of `original`.
        WaterfillError: `keep` names a tensor that is not there.

    Source: Nagel, van Baalen, Blankevoort, Welling, "Data-Free Quantization Through Weight Equalization and Bias
    Correction" (2019), section 4.2, for the means; the variances are corrected in the same way.
    """
    sites = _sites(original, compressed, keep)
    if not sites:
        return
    with evaluation(original), evaluation(compressed), torch.no_grad():
        inputs, wanted = _original_statistics(original, sites, as_batches(data))
        once = [site for site in sites if len(wanted.get(site.name, ())) == 1]
        repeated = [site for site in sites if len(wanted.get(site.name, ())) > 1]
        count = _Counter(progress, len(once) * (1 + bool(repeated)) + len(repeated))
        if repeated:
            found = _correcting_pass(compressed, inputs, [*once, *repeated], wanted, count)
            for site in repeated:
                if site.name in found:
                    site.correct(reduce(merge, wanted[site.name]), reduce(merge, found[site.name]))
                count()
        if once:
            _correcting_pass(compressed, inputs, once, wanted, count)


# Statistics


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and variance of every channel over all samples and positions.

    Attributes:
        count: number of values a channel.
        mean: float64 [channels], on the CPU.
        variance: float64 [channels], divided by the count, on the CPU.
        precision: relative distance of two neighbouring values of their type.
    """

    count: int
    mean: Tensor
    variance: Tensor
    precision: float

    @property
    def alive(self) -> Tensor:
        """Which channels vary: more than a tiny share of the mean variance, and than the rounding of their mean."""
        floor = torch.maximum(_DEAD * self.variance.mean(), (self.precision * self.mean).square())
        return self.variance > floor


def measure(values: Tensor, axis: int) -> Moments:
    """The moments of one call.

    Args:
        values: activations with at least one value a channel.
        axis: which of their axes counts the channels.
    """
    wide = values.detach()[None].double()
    positions = [i for i in range(wide.ndim) if i != (axis if axis < 0 else axis + 1) % wide.ndim]
    variance, mean = torch.var_mean(wide, dim=positions, correction=0)
    return Moments(wide.numel() // mean.numel(), mean.cpu(), variance.cpu(), torch.finfo(values.dtype).eps)


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of two sets of calls together.

    Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979).
    """
    count = a.count + b.count
    part = b.count / count
    shift = b.mean - a.mean
    variance = a.variance * (1 - part) + b.variance * part + shift.square() * (part * (1 - part))
    return Moments(count, a.mean + shift * part, variance, max(a.precision, b.precision))


# What is corrected


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

    def correct(self, wanted: Moments, found: Moments) -> Tensor:
        """Move the bias, and return what must be added to an output that was computed with the old one, float64."""
        bias = self.layer.bias
        assert isinstance(bias, Tensor)
        before = bias.detach().cpu().double()
        _write([bias], [before + wanted.mean - found.mean])
        return (bias.detach().cpu().double() - before).reshape([-1] + [1] * (-1 - self.axis))

    def try_out(self, wanted: Moments, found: Moments) -> Tensor:
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

    def correct(self, wanted: Moments, found: Moments) -> None:
        """Set scale and shift to s' and t'; the layer goes on to use them by itself."""
        alive = wanted.alive & found.alive
        ratio = (wanted.variance / found.variance).clamp(1 / _MAX_RATIO, _MAX_RATIO)
        scale = self.scale * torch.where(alive, ratio, 1.0).sqrt()
        target = self.shift + self.scale * wanted.mean
        write = _write_affine if self.norm.weight is not None else _write_statistics
        write(self.norm, scale, target, found.mean)

    def try_out(self, wanted: Moments, found: Moments) -> None:
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
    """The same by way of the running statistics, for a norm without weight and bias."""
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
    return values.is_floating_point() and values.ndim > 0 and values.numel() > 0


# Which of them


def _sites(original: nn.Module, compressed: nn.Module, keep: Collection[str]) -> list[Site]:
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
        return norm_fields(module.weight is not None)[:2]
    return ("bias",) if isinstance(module, _LAYERS) else ()


def _site(name: str, module: nn.Module, twin: nn.Module) -> Site:
    if isinstance(module, _BatchNorm) and isinstance(twin, _BatchNorm):
        return NormSite(name, module, *scale_and_shift(twin))
    return BiasSite(name, module)


# Passes


def _original_statistics(
    original: nn.Module, sites: list[Site], batches: Iterable[Any]
) -> tuple[Inputs, dict[str, list[Moments]]]:
    """The samples to use, as one batch, and the moments of the original on them: of every call, by name of module."""
    parts = _samples_that_fit(original, batches)
    try:
        inputs = _join(parts)
        return inputs, _observe(original, sites, inputs)
    except CalibrationError:
        if len(parts) == 1:
            raise
        return parts[0], _observe(original, sites, parts[0])


def _observe(original: nn.Module, sites: list[Site], inputs: Inputs) -> dict[str, list[Moments]]:
    found: dict[str, list[Moments]] = defaultdict(list)
    layers = dict(original.named_modules())

    def note(site: Site, values: Tensor) -> None:
        found[site.name].append(measure(values, site.axis))

    with _watching([(site, layers[site.name]) for site in sites], note):
        call(original, inputs)
    return found


def _correcting_pass(
    compressed: nn.Module,
    inputs: Inputs,
    sites: list[Site],
    wanted: dict[str, list[Moments]],
    count: Callable[[], None],
) -> dict[str, list[Moments]]:
    """Correct every site when it is called, for good where that is once; return the moments that were found."""
    layers = dict(compressed.named_modules())
    found: dict[str, list[Moments]] = defaultdict(list)

    def correct(site: Site, values: Tensor) -> Tensor | None:
        goals, calls = wanted[site.name], found[site.name]
        if len(calls) == len(goals):
            return None
        calls.append(measure(values, site.axis))
        if len(goals) == 1:
            change = site.correct(goals[0], calls[0])
            count()
        else:
            change = site.try_out(goals[len(calls) - 1], calls[-1])
        return None if change is None else values + change.to(values)

    with _watching([(site, layers[site.name]) for site in sites], correct):
        call(compressed, inputs)
    return found


@contextmanager
def _watching(places: list[tuple[Site, nn.Module]], act: Act) -> Iterator[None]:
    with ExitStack() as stack:
        for site, layer in places:
            stack.callback(site.watch(layer, act).remove)
        yield


class _Counter:
    """Counts corrected layers and tells the progress."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def __call__(self) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress("statistics", self.done, self.total)


# Samples


def _samples_that_fit(original: nn.Module, batches: Iterable[Any]) -> list[Inputs]:
    """The first batches that can be joined and fit into memory, the last of them cut; always one sample at least."""
    parts: list[Inputs] = []
    room, kind = 0, ""
    for batch in batches:
        inputs = split(batch)[0]
        samples = num_samples(inputs)
        if not parts:
            few = min(samples, _FEW_SAMPLES)
            room = max(1, BUDGET_BYTES * few // _activation_bytes(original, take(inputs, 0, few)))
            kind = _kind(inputs)
        elif room <= 0 or _kind(inputs) != kind:
            break
        parts.append(inputs if samples <= room else take(inputs, 0, room))
        room -= samples
    return parts


def _activation_bytes(model: nn.Module, inputs: Inputs) -> int:
    """How much memory the activations of a batch take at once: a few times the largest input and output."""
    largest = 1

    def note(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        nonlocal largest
        largest = max(largest, sum(t.numel() * t.element_size() for t in tensors_in((args, kwargs, output))))

    with ExitStack() as stack:
        for module in model.modules():
            stack.callback(module.register_forward_hook(note, with_kwargs=True).remove)
        call(model, inputs)
    return _LIVE_LAYERS * largest


def _kind(inputs: Inputs) -> str:
    """A text that is the same for inputs that can be joined along their first axes."""
    samples = num_samples(inputs)

    def kind(tensor: Tensor) -> Any:
        if tensor.ndim == 0 or tensor.shape[0] != samples:
            return id(tensor)
        return tensor.dtype, tensor.device, tensor.shape[1:]

    return repr(map_tensors(inputs, kind))


def _join(parts: list[Inputs]) -> Inputs:
    """One batch of several of the same kind; tensors without a sample axis stay as they are."""
    samples = num_samples(parts[0])
    columns = zip(*(tensors_in(part) for part in parts), strict=True)
    tensors = iter([torch.cat(c) if c[0].ndim and c[0].shape[0] == samples else c[0] for c in columns])
    return map_tensors(parts[0], lambda _: next(tensors))
