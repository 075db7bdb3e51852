"""Trained networks of many kinds with real inputs, for what is compressed without data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

import minilm
import package_inputs as inputs
import package_networks as packages
from waterfill import zoo

Arguments = tuple[Tensor, ...]


@dataclass(frozen=True)
class Network:
    """A trained network and real inputs.

    Attributes:
        key: its name on the command line.
        title: its name in tables.
        original: makes it.
        read: gives its inputs, batch by batch.
        from_package: whether a public package carries it.
        chosen_on: whether the default importance was chosen on it.
    """

    key: str
    title: str
    original: Callable[[], nn.Module]
    read: Callable[[], Iterable[Arguments]]
    from_package: bool = False
    chosen_on: bool = False

    @cached_property
    def batches(self) -> list[Arguments]:
        return list(self.read())

    def outputs(self, model: nn.Module) -> Tensor:
        """All outputs on the real inputs, as one vector."""
        with torch.no_grad():
            return torch.cat([model(*arguments).flatten() for arguments in self.batches])

    @cached_property
    def reference(self) -> Tensor:
        return self.outputs(self.original())

    def error(self, model: nn.Module) -> float:
        """Squared error of the outputs, relative to the squares of the original's."""
        difference = (self.outputs(model) - self.reference).double()
        return float(difference.square().sum() / self.reference.double().square().sum())


def _zoo(key: str, title: str, data: Callable[..., Any], batches: int, *, chosen_on: bool = False) -> Network:
    read = partial(_first, data, batches)
    return Network(key, title, partial(zoo.pretrained, key), read, chosen_on=chosen_on)


def _first(data: Callable[..., Any], batches: int) -> list[Arguments]:
    return [(batch[0],) for batch in islice(data(), batches)]


def _parts(*values: Tensor, size: int = 32) -> list[Arguments]:
    return list(zip(*(value.split(size) for value in values), strict=True))


def _package(key: str, title: str, read: Callable[[], list[Arguments]], *, chosen_on: bool = False) -> Network:
    return Network(key, title, getattr(packages, key), read, from_package=True, chosen_on=chosen_on)


def _calls() -> list[Arguments]:
    powers = inputs.windows(inputs.powers(512, 256).clamp(min=1e-12).log(), 300, 150)[:, None]
    return _parts(powers, torch.randn(len(powers), 64, generator=torch.Generator().manual_seed(0)))


NETWORKS = (
    _zoo("lenet300", "LeNet-300-100", zoo.mnist_test, 4, chosen_on=True),
    _zoo("lenet5", "LeNet-5", zoo.mnist_test, 4),
    _zoo("resnet20", "ResNet-20", partial(zoo.cifar10_test, batch_size=100), 4, chosen_on=True),
    _zoo("resnet32", "ResNet-32", partial(zoo.cifar10_test, batch_size=100), 4),
    _zoo("paper_conv_w32", "The paper's convolutional network", partial(zoo.paper_cifar10_test, batch_size=100), 4),
    _zoo("mobilenet_v1", "MobileNet v1 0.25 (depthwise)", partial(zoo.imagenet_test, samples=96), 96, chosen_on=True),
    _zoo("charlstm", "Character LSTM", zoo.charlstm_test, 1, chosen_on=True),
    _zoo("stories260k", "stories260K (Llama)", partial(zoo.stories_test, samples=24), 24, chosen_on=True),
    _package("voice_detector", "Silero VAD (convolutions, LSTM)", lambda: _parts(inputs.sounds()), chosen_on=True),
    _package(
        "speaker_encoder",
        "Speaker encoder (3-layer LSTM)",
        lambda: _parts(inputs.windows(inputs.mels(40, 400), 160, 80)),
        chosen_on=True,
    ),
    _package("pitch_tracker", "CREPE tiny (convolutions)", lambda: _parts(inputs.frames(2560)), chosen_on=True),
    _package("line_reader", "Line reader (convolutions, 2 BiLSTMs)", lambda: _parts(inputs.lines(24))),
    _package("call_rater", "PLCMOS (convolutions, BiGRU)", _calls, chosen_on=True),
    _package(
        "sound_rater",
        "DNSMOS (convolutions)",
        lambda: _parts(inputs.windows(inputs.decibels(inputs.mels(120, 320)), 900, 600)),
        chosen_on=True,
    ),
    _package("file_types", "Magika (embedding, convolution)", lambda: _parts(inputs.files(64)), chosen_on=True),
    Network("minilm", "all-MiniLM-L6-v2 (BERT)", minilm.pretrained, lambda: [(each,) for each in minilm.batches(64)]),
)
