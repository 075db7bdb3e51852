"""Per-sample gradients of any tensor of any model: slower, but without knowing how it is used."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from waterfill.importance.backward import check_twice, gradients
from waterfill.models.batches import Inputs, arguments, call, map_tensors, num_samples, take, tensors_in
from waterfill.models.capture import Tape, Variables
from waterfill.models.outputs import first_tensor
from waterfill.models.restoring import kept_attributes

CHUNK_BYTES = 2**26


def vmap_gradients(
    model: nn.Module, learned: Variables, names: Collection[str], inputs: Inputs, signals: Tensor
) -> dict[str, Tensor]:
    """Gradients of all samples at once, by vectorising the model itself.

    Args:
        model: the network.
        learned: its learned tensors.
        names: which of them.
        inputs: on the model's device.
        signals: what is sent back, [signals, samples, *shape of one output].

    Returns:
        By name, [samples, signals, *shape of the tensor].

    Raises:
        Exception: whatever `torch.vmap` raises for a model that it cannot vectorise.
    """
    values = {name: learned.tensors[name].detach() for name in names}
    response, parts, split = _response(model, learned, inputs)
    over_signals = vmap(grad(response), in_dims=(None, 0, *(None for _ in parts)))
    over_samples = vmap(over_signals, in_dims=(None, 1, *split))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        result: dict[str, Tensor] = over_samples(values, signals, *parts)
    return result


def vmap_curvatures(
    model: nn.Module, learned: Variables, name: str, inputs: Inputs, signal: Tensor, directions: Tensor
) -> Tensor:
    """Second derivatives of `<signal, output>` of all samples at once, times directions.

    Args:
        model: the network.
        learned: its learned tensors.
        name: of the tensor by which it is differentiated.
        inputs: on the model's device.
        signal: [samples, *shape of one output].
        directions: [directions, samples, *shape of the tensor].

    Returns:
        [directions, samples, *shape of the tensor].
    """
    response, parts, split = _response(model, learned, inputs)

    def slope(value: Tensor, direction: Tensor, *rest: Tensor) -> Tensor:
        found: Tensor = grad(response)({name: value}, *rest)[name]
        return (found * direction).sum()

    over_directions = vmap(grad(slope), in_dims=(None, 0, None, *(None for _ in parts)))
    over_samples = vmap(over_directions, in_dims=(None, 1, 0, *split), out_dims=1)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        result: Tensor = over_samples(learned.tensors[name].detach(), directions, signal, *parts)
    return result


def _response(
    model: nn.Module, learned: Variables, inputs: Inputs
) -> tuple[Callable[..., Tensor], list[Tensor], list[int | None]]:
    """Make `<signal, output>` of one sample as a function of (learned tensors by name, signal, *parts of the inputs).

    Returns:
        The function, the parts for all samples, and on which axis of each the samples are.
    """
    samples = num_samples(inputs)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    tensors = tensors_in(inputs)
    batched = [t.ndim > 0 and t.shape[0] == samples for t in tensors]

    def response(values: Mapping[str, Tensor], signal: Tensor, *parts: Tensor) -> Tensor:
        given = (part.unsqueeze(0) if split else part for part, split in zip(parts, batched, strict=True))
        one = map_tensors(inputs, lambda _: next(given).clone())
        args, kwargs = arguments(model, one)
        own = {name: value for name, value in values.items() if name in parameters}
        with kept_attributes(model), Tape(learned, values):
            output = first_tensor(functional_call(model, own, args, kwargs))
        answer: Tensor = (output[0] * signal).sum()
        return answer

    return response, tensors, [0 if split else None for split in batched]


def vmap_squares(
    model: nn.Module, learned: Variables, names: Collection[str], inputs: Inputs, signals: Tensor
) -> dict[str, Tensor]:
    """Sums over samples and signals of squared gradients, by `vmap_gradients`, few enough at a time.

    Args:
        model: the network.
        learned: its learned tensors.
        names: which of them.
        inputs: on the model's device.
        signals: [signals, samples, *shape of one output].

    Returns:
        By name, float64 of the shape of the tensor.
    """
    most = max(1, CHUNK_BYTES // max(1, sum(learned.tensors[name].nbytes for name in names)))
    together = min(len(signals), most)
    step = max(1, most // together)
    totals = _zeros(learned, names)
    for start in range(0, num_samples(inputs), step):
        part = take(inputs, start, start + step)
        for some in torch.split(signals[:, start : start + step], together):
            for name, gradient in vmap_gradients(model, learned, names, part, some).items():
                totals[name] += gradient.square().sum((0, 1), dtype=torch.float64)
    return totals


def loop_squares(
    model: nn.Module, learned: Variables, names: Collection[str], inputs: Inputs, signals: Tensor
) -> dict[str, Tensor]:
    """The same, one sample and one signal after the other, for models that cannot be vectorised."""
    totals = _zeros(learned, names)
    tensors = [learned.tensors[name] for name in names]
    for sample in range(num_samples(inputs)):
        if not signals[:, sample].any():  # left out
            continue
        with Tape(learned, {}):
            output = call(model, take(inputs, sample, sample + 1))
        for of_signal in _backward(output, tensors, signals[:, sample : sample + 1]):
            for name, gradient in zip(names, of_signal, strict=True):
                if gradient is not None:
                    totals[name] += gradient.double().square()
    return totals


def loop_curvatures(
    model: nn.Module, learned: Variables, name: str, inputs: Inputs, signal: Tensor, directions: Tensor
) -> Tensor:
    """The same as `vmap_curvatures`, one sample and one direction after the other."""
    result = torch.zeros_like(directions)
    tensor = learned.tensors[name]
    for sample in range(num_samples(inputs)):
        with Tape(learned, {}):
            output = call(model, take(inputs, sample, sample + 1))
        (slope,) = gradients(output, [tensor], signal[sample : sample + 1], differentiable=True)
        if slope is None or not slope.requires_grad:
            continue
        check_twice(slope)
        for direction in range(len(directions)):
            (found,) = gradients(slope, [tensor], directions[direction, sample])
            if found is not None:
                result[direction, sample] = found
    return result


def loop_gradients(
    model: nn.Module, learned: Variables, names: Collection[str], inputs: Inputs, signals: Tensor
) -> dict[str, Tensor]:
    """The same as `vmap_gradients`, one sample and one signal after the other."""
    tensors = [learned.tensors[name] for name in names]
    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    for sample in range(num_samples(inputs)):
        with Tape(learned, {}):
            output = call(model, take(inputs, sample, sample + 1))
        every = [
            [torch.zeros_like(t) if g is None else g for g, t in zip(of_signal, tensors, strict=True)]
            for of_signal in _backward(output, tensors, signals[:, sample : sample + 1])
        ]
        for name, found in zip(names, zip(*every, strict=True), strict=True):
            rows[name].append(torch.stack(found))
    return {name: torch.stack(found) for name, found in rows.items()}


def _backward(output: Tensor, tensors: Sequence[Tensor], signals: Tensor) -> Iterator[tuple[Tensor | None, ...]]:
    for signal in signals:
        yield gradients(output, tensors, signal)


def _zeros(learned: Variables, names: Collection[str]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(learned.tensors[name], dtype=torch.float64) for name in names}
