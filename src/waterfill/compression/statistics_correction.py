"""Statistics correction: give every norm and bias of a compressed model back the means and variances it had."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.compression.activation_moments import ChannelMoments, measure, merge
from waterfill.compression.correction_sites import Act, Site, find_sites
from waterfill.compression.joined_samples import joined, samples_that_fit
from waterfill.compression.target_correction import Requantization, record_inputs, requantize
from waterfill.errors import CalibrationError
from waterfill.models.batches import Inputs, call, evaluation
from waterfill.models.kept_batches import as_batches
from waterfill.protocols import Progress


def correct_statistics(
    original: nn.Module,
    compressed: nn.Module,
    data: Iterable[Any],
    *,
    keep: Collection[str] = (),
    progress: Progress | None = None,
    sequence: Requantization | None = None,
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

    With `sequence` matrices are quantized again in the same pass, each before the statistics behind it are corrected.

    All samples flow as one batch, as many as `samples_that_fit` takes; where batches cannot be joined, the first one.

    Args:
        original: the network as it was; it is left untouched.
        compressed: a copy of it with other weights. Its norms may be folded or not; only `weight` and `bias` of a norm
            are written, or `running_mean` and `running_var` where it has no others, and `bias` of other layers.
        data: batches, with or without targets.
        keep: names in the state dict of tensors of `compressed` that stay as they are.
        progress: called with ("statistics", done, total) for every corrected layer.
        sequence: the matrices to quantize again, and how; None for none.

    Raises:
        CalibrationError: the batches do not fit the model, or `compressed` is no copy of `original`.
        WaterfillError: `keep` names a tensor that is not there.

    Source: Nagel, van Baalen, Blankevoort, Welling, "Data-Free Quantization Through Weight Equalization and Bias
    Correction" (2019), section 4.2, for the means; the variances are corrected in the same way.
    """
    names = () if sequence is None else sequence.names
    correct(observe(original, compressed, data, keep=keep, names=names), compressed, progress, sequence)


@dataclass(frozen=True, eq=False)
class Observed:
    """Activations of an original on calibration data, as far as a copy is to have the same.

    Attributes:
        inputs: the samples, as one batch.
        sites: what can be corrected in the copy.
        wanted: moments of every call of a site, by name of the module.
        matrix_inputs: samples of the inputs of matrices [groups, in, positions], by name.
    """

    inputs: Inputs
    sites: Sequence[Site]
    wanted: Mapping[str, Sequence[ChannelMoments]]
    matrix_inputs: Mapping[str, Tensor]


def observe(
    original: nn.Module,
    compressed: nn.Module,
    data: Iterable[Any],
    *,
    keep: Collection[str] = (),
    names: Collection[str] = (),
) -> Observed:
    """Run the original once over the samples that fit, for any number of corrections of a copy.

    Args:
        original: the network as it was.
        compressed: the copy; its values do not matter.
        data: batches, with or without targets.
        keep: names of tensors of the copy that stay as they are.
        names: of the matrices that may be quantized again.

    Raises:
        CalibrationError: the batches do not fit the model, or `compressed` is no copy of `original`.
        WaterfillError: `keep` names a tensor that is not there.
    """
    sites = find_sites(original, compressed, keep)
    if not sites and not names:
        return Observed((), (), {}, {})
    with evaluation(original), torch.no_grad():
        parts = samples_that_fit(original, as_batches(data))
        try:
            inputs = joined(parts)
            return Observed(inputs, sites, *_pass(original, sites, inputs, names))
        except CalibrationError:
            if len(parts) == 1:
                raise
            return Observed(parts[0], sites, *_pass(original, sites, parts[0], names))


def correct(
    observed: Observed, compressed: nn.Module, progress: Progress | None = None, sequence: Requantization | None = None
) -> None:
    """Correct a copy by what was observed of its original, as `correct_statistics`.

    Args:
        observed: by `observe` with the same copy.
        compressed: the copy.
        progress: called with ("statistics", done, total) for every corrected layer.
        sequence: the matrices to quantize again, of those that were observed.
    """
    if not observed.sites and sequence is None:
        return
    wanted = observed.wanted
    once = [site for site in observed.sites if len(wanted.get(site.name, ())) == 1]
    repeated = [site for site in observed.sites if len(wanted.get(site.name, ())) > 1]
    count = _Counter(progress, len(once) * (1 + bool(repeated)) + len(repeated))
    with evaluation(compressed, writing=True), torch.no_grad():
        with nullcontext() if sequence is None else requantize(compressed, sequence, observed.matrix_inputs):
            found = _correcting_pass(compressed, observed, [*once, *repeated], count)
        for site in repeated:
            if site.name in found:
                site.correct(reduce(merge, wanted[site.name]), reduce(merge, found[site.name]))
            count()
        if repeated and once:
            _correcting_pass(compressed, observed, once, count)


def _pass(
    original: nn.Module, sites: Sequence[Site], inputs: Inputs, names: Collection[str]
) -> tuple[dict[str, list[ChannelMoments]], dict[str, Tensor]]:
    found: dict[str, list[ChannelMoments]] = defaultdict(list)
    layers = dict(original.named_modules())

    def note(site: Site, values: Tensor) -> None:
        found[site.name].append(measure(values, site.axis))

    with _watching([(site, layers[site.name]) for site in sites], note), record_inputs(original, names) as seen:
        call(original, inputs)
    return found, seen


def _correcting_pass(
    compressed: nn.Module, observed: Observed, sites: list[Site], count: Callable[[], None]
) -> dict[str, list[ChannelMoments]]:
    """Correct every site when it is called, for good where that is once; return the moments that were found."""
    layers = dict(compressed.named_modules())
    found: dict[str, list[ChannelMoments]] = defaultdict(list)

    def correct(site: Site, values: Tensor) -> Tensor | None:
        goals, calls = observed.wanted[site.name], found[site.name]
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
        call(compressed, observed.inputs)
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
