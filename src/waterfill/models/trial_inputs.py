"""Random inputs that a module takes, found by trying: what stands in for data where there are none."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.models.arrangement import positional_inputs
from waterfill.models.batches import call, evaluation

SAMPLES = 8
"""Of a batch."""

SMOOTH = 0.9
"""Standard deviation of the sum of steps in an input that is smooth."""

ROUGH = 0.3
"""Standard deviation of what is independent in such an input."""

SIDES = (64, 32, 28, 128, 224, 96, 48, 16, 299, 8)
"""Of images, in the order of trials."""

LENGTHS = (4096, 1024, 2048, 16000, 512, 256, 128, 64)
"""Of sounds, in the order of trials."""

TIMES = (64, 32, 16, 128, 256, 512, 1024, 2048, 8)
"""Of sequences, in the order of trials."""

DEPTHS = (16, 32, 8)
"""Of volumes, in the order of trials."""

LAYERS = 3
"""How many of the first layers say what may go into the network."""

_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


@dataclass(frozen=True)
class RandomInput:
    """What a module takes.

    Attributes:
        shape: of one sample.
        values: number of different integers; 0 for real numbers.
    """

    shape: tuple[int, ...]
    values: int = 0

    def __str__(self) -> str:
        """The shape of a batch."""
        return str([SAMPLES, *self.shape])

    def draw(self, generator: torch.Generator, scale: float = 1.0) -> Tensor:
        """Draw a batch: of real numbers half is independent, half smooth as sums of steps are.

        Args:
            generator: draws.
            scale: standard deviation of real numbers.
        """
        shape = (SAMPLES, *self.shape)
        if self.values:
            return torch.randint(0, self.values, shape, generator=generator)
        found = torch.randn(shape, generator=generator)
        half = SAMPLES // 2
        found[half:] = ROUGH * found[half:] + SMOOTH * _sums(torch.randn(shape, generator=generator)[half:])
        return scale * found


def _sums(steps: Tensor) -> Tensor:
    """Sums of steps along the last axes, with mean 0 and deviation 1 in every sample: images are alike in spectrum."""
    axes = tuple(range(2 if steps.ndim > 3 else 1, steps.ndim))
    for axis in axes:
        steps = steps.cumsum(axis)
    steps = steps - steps.mean(axes, keepdim=True)
    return steps / steps.square().mean(axes, keepdim=True).sqrt().clamp(min=1e-9)


def input_of(model: nn.Module) -> RandomInput | None:
    """Find what a module takes, by trying shapes that its first layers allow.

    Args:
        model: a module, whose parameters ask for gradients; it is run, so a copy should be given.

    Returns:
        The first input that it turns into finite real numbers that have gradients; None where there is none.
    """
    generator = torch.Generator().manual_seed(0)
    return next((each for each in _candidates(model) if is_taken(model, each.draw(generator))), None)


def is_taken(model: nn.Module, inputs: Tensor) -> bool:
    """Whether a module turns an input into finite real numbers that have gradients."""
    try:
        with quiet(model):
            output = call(model, inputs)
    except Exception:  # noqa: BLE001 - whatever a stranger's forward raises says that it does not take this
        return False
    usable = output.is_floating_point() and output.requires_grad and output.numel() > 0
    return bool(usable and output.isfinite().all())


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Evaluate a module without warnings, and leave the random numbers of the caller as they are."""
    with evaluation(model), torch.random.fork_rng(devices=[]), warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        yield


def _candidates(model: nn.Module) -> Iterator[RandomInput]:
    """Inputs to try, the likelier first; none for a module that asks for several arguments."""
    if positional_inputs(model)[0] > 1:
        return
    layers = list(islice((each for each in model.modules() if _shapes(each)), LAYERS))
    sounds = [RandomInput((length,)) for length in LENGTHS]
    every = [_shapes(layer) for layer in layers]
    yield from dict.fromkeys([*(every[0] if every else ()), *sounds, *(each for some in every[1:] for each in some)])


def _shapes(layer: nn.Module) -> list[RandomInput]:
    """What may go into a network whose first layer is this one; nothing for other layers."""
    if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
        return [RandomInput((time,), layer.num_embeddings) for time in TIMES]
    if isinstance(layer, nn.modules.conv._ConvNd):
        return _of_convolution(layer.in_channels, layer.weight.ndim - 2)
    if isinstance(layer, nn.Linear):
        return [RandomInput(shape) for shape in ((layer.in_features,), (TIMES[0], layer.in_features))] + _flattened(
            layer.in_features
        )
    if isinstance(layer, _RECURRENT):
        return [RandomInput((TIMES[0], layer.input_size)), RandomInput((layer.input_size,))]
    return []


def _of_convolution(channels: int, axes: int) -> list[RandomInput]:
    lengths: Sequence[int] = {1: LENGTHS, 2: SIDES}.get(axes, DEPTHS)
    found = [RandomInput((channels, *axes * (length,))) for length in lengths]
    if channels == 1 and axes > 1:
        found += [RandomInput(axes * (length,)) for length in lengths]
    return found


def _flattened(features: int) -> list[RandomInput]:
    """Grey and coloured images of so many values."""
    sides = {channels: math.isqrt(features // channels) for channels in (1, 3)}
    return [RandomInput((count, side, side)) for count, side in sides.items() if count * side * side == features]


def parameters_with_gradients(model: nn.Module) -> dict[str, Tensor]:
    """Let all real parameters of a copy ask for gradients, and give them by name."""
    found: dict[str, Any] = {name: each for name, each in model.named_parameters() if each.is_floating_point()}
    for each in found.values():
        each.requires_grad_(True)
    return found
