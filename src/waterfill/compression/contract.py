"""What a compression relies on, checked once on a few samples of one batch: a violation is named.

```
original twice    the same answer, or the model is random or keeps state
copy              the same answer, without reading the memory of the original
copy, norms folded    the same answer, or norms are stored as they are
copy, values moved    the answer of a new copy with these values, or something derived from the old ones was kept
```
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from waterfill.errors import CalibrationError, UnsupportedModelError
from waterfill.models.batches import Inputs, evaluation, split, take, tensors_in, whole_output
from waterfill.models.cloning import clone
from waterfill.models.module_state import has_storage
from waterfill.models.restoring import LARGEST_KEPT, attribute_tensors
from waterfill.models.state_dict import values_of
from waterfill.models.torch_module import fill
from waterfill.records import Constant, Floats, Inventory, NormVariance

FEW_SAMPLES = 4
"""So many samples of a batch are looked at."""

PASSES = 2
"""Number of passes of a model that draws no random numbers."""

RANDOM_PASSES = 64
"""Number of passes of a model that draws random numbers, which may matter rarely."""

SAME = 1e-4
"""Two answers are the same within this fraction of the largest value, and 16 roundings of their type."""

FOLDED = 1e-3
"""The same of a network whose norms are rounded to a scale and a shift."""

MOVE = 0.1
"""Values are moved by up to this fraction."""


@dataclass(frozen=True, eq=False)
class FewSamples:
    """Some samples of a batch, and which tensor of a model's output counts as the answer to them.

    The answer is that tensor as the model returns it: logarithms of probabilities would magnify rounding near zero.

    Attributes:
        inputs: of the samples.
        read: takes the tensor out of an output.
    """

    inputs: Inputs
    read: Callable[[Any], Tensor]

    @classmethod
    def of(cls, model: nn.Module, batch: Any, read: Callable[[Any], Tensor]) -> FewSamples:
        """The first samples of a batch; all where the model does not take fewer."""
        inputs, _ = split(batch)
        try:
            few = cls(take(inputs, 0, FEW_SAMPLES), read)
            few.answer(model)
        except (CalibrationError, UnsupportedModelError):
            return cls(inputs, read)
        return few

    def output(self, model: nn.Module) -> Tensor:
        """The tensor that counts, with gradients and modes as the caller has set them."""
        return self.read(whole_output(model, self.inputs))

    def answer(self, model: nn.Module) -> Tensor:
        """The same in evaluation mode, on the CPU."""
        with evaluation(model), torch.no_grad():
            return self.output(model).detach().cpu().clone()


def check_repeatable(model: nn.Module, samples: FewSamples) -> None:
    """Check that a model answers the same batch in the same way.

    Args:
        model: the network.
        samples: of its data.

    Raises:
        CalibrationError: it does not.
        UnsupportedModelError: its forward pass changes parameters in a way that cannot be put back.
    """
    _check_learned_stay(model, samples)
    before = _random_state()
    first = samples.answer(model)
    passes = PASSES if _random_state() == before else RANDOM_PASSES
    for _ in range(passes - 1):
        gap = difference(first, samples.answer(model))
        if gap > SAME:
            raise CalibrationError(
                f"The model answers the same batch differently in two passes in evaluation mode (by {gap:.2g} of the "
                "largest output): it is random, or keeps state outside its buffers and attributes; expected one answer "
                "for one batch. Give functional dropout training=self.training, switch sampling and noise off, and "
                "reset what is kept."
            )


def _check_learned_stay(model: nn.Module, samples: FewSamples) -> None:
    """Check that a forward pass does not write into parameters; into small ones it may by `.data`, which is put back.

    Raises:
        UnsupportedModelError: it does; the parameter has its values again.
    """
    learned = [(name, each) for name, each in model.named_parameters() if has_storage(each) and not each.is_inference()]
    versions = [each._version for _, each in learned]
    large = [(name, each, each.detach().clone()) for name, each in learned if each.numel() > LARGEST_KEPT]
    with evaluation(model), torch.no_grad():
        samples.output(model)
        written = [name for (name, each), version in zip(learned, versions, strict=True) if each._version != version]
    for name, each, values in large:
        if not torch.equal(each, values):
            written.append(name)
            with torch.no_grad():
                each.copy_(values)
    if written:
        raise UnsupportedModelError(
            f"A forward pass in evaluation mode changes the parameter {written[0]!r}; expected one that leaves "
            "parameters as they are, or the file has other values than the model. Change them in training mode alone."
        )


def check_copies(model: nn.Module, samples: FewSamples, inventory: Inventory) -> bool:
    """Check that copies of a model compute with what they are filled with.

    Args:
        model: the network, which is not touched.
        samples: of its data.
        inventory: its tensors.

    Returns:
        Whether a copy filled with the inventory answers like the model; False only where norms are folded in it.

    Raises:
        UnsupportedModelError: a copy answers otherwise, reads the memory of the model, or keeps what it derived from
            values that it had before.
    """
    wanted = samples.answer(model)
    copy = clone(model)
    _check_copy(model, copy, samples, wanted)
    fill(copy, values_of(inventory))
    gap = difference(wanted, samples.answer(copy))
    if gap > FOLDED:
        if any(isinstance(entry.origin, Constant | NormVariance) for entry in inventory.entries):
            return False
        raise UnsupportedModelError(
            f"A copy of the model that is filled with the model's own values answers the same batch differently (by "
            f"{gap:.2g} of the largest output); expected the same answer. Correct what loading does in the model "
            "(_load_from_state_dict, hooks of load_state_dict)."
        )
    _check_derived(model, copy, samples, inventory)
    return True


def _check_copy(model: nn.Module, copy: nn.Module, samples: FewSamples, wanted: Tensor) -> None:
    """Check that a copy answers like the model, from its own memory.

    Raises:
        UnsupportedModelError: it does not.
    """
    watch = MemoryWatch(model)
    try:
        with watch:
            found = samples.answer(copy)
    except CalibrationError:  # of compiled parts, which cannot be watched
        found = samples.answer(copy)
    gap = difference(wanted, found)
    if gap > SAME and not watch.read:  # fused kernels, such as those of transformer encoders, are not run while watched
        gap = difference(wanted, samples.answer(copy))
    if watch.read:
        raise UnsupportedModelError(
            f"A copy of the model reads the tensor {watch.read[0]!r} of the model itself: a hook, a class attribute or "
            "a global name holds the model or a part of it, which copy.deepcopy does not see; expected a copy that "
            "computes with its own tensors. Hold it as an attribute of the module (self....), or remove the hook."
        )
    if gap > SAME:
        raise UnsupportedModelError(
            f"A copy of the model (copy.deepcopy) answers the same batch differently (by {gap:.2g} of the largest "
            "output); expected the same answer. Hooks, weak references, keys made by id() and a __deepcopy__ or "
            "__setstate__ of its own are what is often lost; keep what forward uses in attributes of the modules."
        )


def _check_derived(model: nn.Module, used: nn.Module, samples: FewSamples, inventory: Inventory) -> None:
    """Check that a copy which has run with other values answers like a new one, and that moved values are noticed.

    Raises:
        UnsupportedModelError: something is kept that was derived from a tensor.
    """
    names = list(inventory.weights)
    if _gap_to_new(model, used, samples, _moved_values(inventory, names)) > FOLDED:
        kept = (n for n in names if _gap_to_new(model, used, samples, _moved_values(inventory, [n])) > 0)
        raise UnsupportedModelError(_derived(next(kept, names[0]), "a cache (functools.lru_cache)"))
    try:
        names = _without_gradient(used, samples, inventory)
    except (RuntimeError, NotImplementedError, CalibrationError):  # no gradients; whoever needs them says so
        return
    if not names:
        return
    fill(used, values_of(inventory))
    before = samples.answer(used)
    for name in names:
        fill(used, _moved_values(inventory, [name]))
        size = inventory.weights[name].matrix.size
        if difference(before, samples.answer(used)) == 0 and _has_effect(used, samples, size):
            raise UnsupportedModelError(_derived(name, f"an attribute or a container with {size} values"))


def _derived(name: str, keeper: str) -> str:
    return (
        f"Moving the tensor {name!r} does not reach the model's answer, for {keeper} keeps what was derived from it; "
        "expected a forward that computes with its parameters. Derive it in forward, or clear what is kept (set it to "
        "None) before the model is compressed and whenever it is loaded."
    )


def _gap_to_new(model: nn.Module, used: nn.Module, samples: FewSamples, values: Mapping[str, Tensor]) -> float:
    """How far the answer of a copy that has run is from that of a new one, both filled with the same values."""
    fill(used, values)
    new = clone(model)
    fill(new, values)
    return difference(samples.answer(new), samples.answer(used))


def _without_gradient(model: nn.Module, samples: FewSamples, inventory: Inventory) -> list[str]:
    """Matrices whose gradient from the answer is none, or zero."""
    parameters = {name: each for name, each in model.named_parameters(remove_duplicate=False) if each.ndim > 1}
    known = {name: parameters[name] for name in inventory.weights if name in parameters}
    with evaluation(model), torch.enable_grad():
        for each in known.values():
            each.requires_grad_()
        output = samples.output(model)
        if not output.requires_grad or not known:
            return list(known)
        signal = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output)
        try:
            found = torch.autograd.grad(output, list(known.values()), signal, allow_unused=True)
        except RuntimeError:  # it has no backward pass
            return list(known)
    return [name for name, each in zip(known, found, strict=True) if each is None or not each.any()]


def _has_effect(model: nn.Module, samples: FewSamples, size: int) -> bool:
    """Whether the answer depends on a tensor of so many values that is neither a parameter nor in the state dict."""
    before = samples.answer(model)
    for tensor in attribute_tensors(model):
        if tensor.numel() == size and tensor.is_floating_point():
            kept = tensor.detach().clone()
            with torch.no_grad():
                try:
                    tensor.mul_(1 + MOVE)
                    if difference(before, samples.answer(model)) > 0:
                        return True
                finally:
                    tensor.copy_(kept)
    return False


# Answers


def difference(one: Tensor, other: Tensor) -> float:
    """Largest difference of two answers over the largest value, less what rounding makes; infinite for other shapes."""
    if one.shape != other.shape:
        return float("inf")
    if one.is_complex() and other.is_complex():
        one, other = torch.view_as_real(one), torch.view_as_real(other)
    unit = torch.finfo(one.dtype).eps if one.is_floating_point() else 0.0
    first, second = one.double(), other.double()
    apart = torch.where((first == second) | (first.isnan() & second.isnan()), 0.0, (first - second).abs())
    largest = float(first[first.isfinite()].abs().max()) if first.isfinite().any() else 0.0
    gap = float(apart.nan_to_num(nan=float("inf")).max()) if apart.numel() else 0.0
    found = gap / largest if largest > 0 else gap
    return found if found > 16 * unit else 0.0


def _random_state() -> tuple[bytes, Any, bytes]:
    """State of the generators that everybody shares."""
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), str(np.random.get_state()).encode()  # noqa: NPY002


# Values


def _moved_values(inventory: Inventory, names: Collection[str]) -> dict[str, Tensor]:
    """A state dict of the values in an inventory, of which some matrices are moved."""
    return values_of(inventory, {name: _moved(inventory.weights[name].matrix) for name in names})


def _moved(values: Floats) -> Floats:
    """Values that differ by up to a tenth and keep their signs; zeros become small where there is nothing else."""
    noise = np.random.default_rng(values.size).uniform(-MOVE, MOVE, values.shape)
    found = values * (1 + noise) if values.any() else MOVE * noise
    return found.astype(np.float32)


class MemoryWatch(TorchFunctionMode):
    """While it is entered, notes which tensors of a model are read.

    Args:
        model: the network.

    Attributes:
        read: names of what was read, in that order.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        named = (*model.named_parameters(), *model.named_buffers())
        self.read: list[str] = []
        self._memory = {each.untyped_storage().data_ptr(): name for name, each in named if has_storage(each)}

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Look at what a function takes, and call it."""
        del types
        for each in tensors_in((*args, *(kwargs or {}).values())):
            if has_storage(each):
                name = self._memory.get(each.untyped_storage().data_ptr())
                self.read += [] if name is None else [name]
        return func(*args, **(kwargs or {}))
