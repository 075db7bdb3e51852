"""Join samples that flow through a model at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from waterfill.importance.state import SITE_BYTES
from waterfill.models.batches import Inputs, call, evaluation, map_tensors, num_samples, split, take, tensors_in
from waterfill.models.containers import leaves
from waterfill.models.work import WorkBudget, sample_work

BUDGET_BYTES = 1 << 30
"""Memory for the activations of all samples together."""

WORK = WorkBudget(values=1 << 30, per_weight=256)
"""Of a pass of all samples, and of a comparison of two ways to share the bits: about a second and a half on one core.

896 images of CIFAR-10 through a ResNet-20 are 0.8 of 2^30 values, 28 series of 2,048 through a network with 34 million
values a series are all.
"""

GRADIENT_WORK = WorkBudget(values=1 << 31, per_weight=512)
"""Of the samples that importances are estimated on; with the gradients it is three times that."""

_LIVE_LAYERS = 4
"""How many times the largest input and output of a module are in memory at once, at the most."""
_FEW_SAMPLES = 8
"""How many samples measure it."""
_SIGNALS = 10
"""For about so many signals gradients are kept at once."""


def samples_that_fit(original: nn.Module, batches: Iterable[Any]) -> list[Inputs]:
    """The first batches that can be joined, fit into memory and are within `WORK`, the last of them cut.

    There is always one sample at least.
    """
    parts: list[Inputs] = []
    room, kind = 0, ""
    for batch in batches:
        inputs = split(batch)[0]
        samples = num_samples(inputs)
        if not parts:
            few = min(samples, _FEW_SAMPLES)
            room = max(1, BUDGET_BYTES * few // _activation_bytes(original, take(inputs, 0, few)))
            room = min(room, WORK.samples(original, sample_work(original, inputs)))
            kind = kind_of(inputs)
        elif room <= 0 or kind_of(inputs) != kind:
            break
        parts.append(inputs if samples <= room else take(inputs, 0, room))
        room -= samples
    return parts


def activation_bytes(original: nn.Module, batches: Iterable[Any]) -> int:
    """Bytes of what flows through a model at once: where its statistics are corrected, and where gradients come back.

    Both are counted, for memory that was used in small pieces is seldom given back.
    """
    with evaluation(original), torch.no_grad():
        parts = samples_that_fit(original, batches)
        return sum(_activation_bytes(original, each) for each in parts) + _gradient_bytes(original, parts[0])


def _gradient_bytes(model: nn.Module, inputs: Inputs) -> int:
    """Memory for the gradients of some signals at all layers, and for what is kept to take them."""
    samples = num_samples(inputs)
    few = min(samples, _FEW_SAMPLES)
    total = 0

    def add(_module: nn.Module, _args: Any, output: Any) -> None:
        nonlocal total
        total += sum(t.numel() * t.element_size() for t in tensors_in(output))

    with ExitStack() as stack:
        for module in (each for each in _watchable(model) if not list(each.children())):
            stack.callback(module.register_forward_hook(add).remove)
        call(model, take(inputs, 0, few))
    most = max(_FEW_SAMPLES, SITE_BYTES * few // max(1, _SIGNALS * total))
    return (_SIGNALS + _LIVE_LAYERS) * total * min(samples, most) // few


def _activation_bytes(model: nn.Module, inputs: Inputs) -> int:
    """How much memory the activations of a batch take at once: a few times the largest input and output."""
    largest = sum(t.numel() * t.element_size() for t in tensors_in(inputs))

    def note(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        nonlocal largest
        largest = max(largest, sum(t.numel() * t.element_size() for t in tensors_in((args, kwargs, output))))

    with ExitStack() as stack:
        for module in _watchable(model):
            stack.callback(module.register_forward_hook(note, with_kwargs=True).remove)
        note(model, (), {}, call(model, inputs))
    return _LIVE_LAYERS * max(1, largest)


def _watchable(model: nn.Module) -> Iterator[nn.Module]:
    """The modules that take hooks: scripted and traced ones do not, and their parts run outside of Python."""
    return (module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule))


def kind_of(inputs: Inputs) -> str:
    """A text that is the same for inputs that can be joined along their first axes; of packed sequences none are."""
    if any(isinstance(leaf, PackedSequence) for leaf in leaves(inputs)):
        return f"packed {id(inputs)}"
    samples = num_samples(inputs)

    def kind(tensor: Tensor) -> Any:
        if tensor.ndim == 0 or tensor.shape[0] != samples:
            return id(tensor)
        return tensor.dtype, tensor.device, tensor.shape[1:]

    return repr((type(inputs), [kind(tensor) for tensor in tensors_in(inputs)]))


def joined(parts: list[Inputs]) -> Inputs:
    """One batch of several of the same kind; tensors without a sample axis stay as they are."""
    samples = num_samples(parts[0])
    columns = zip(*(tensors_in(part) for part in parts), strict=True)
    tensors = iter([torch.cat(c) if c[0].ndim and c[0].shape[0] == samples else c[0] for c in columns])
    return map_tensors(parts[0], lambda _: next(tensors))
