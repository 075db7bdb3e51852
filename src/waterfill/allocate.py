"""One water level for the whole model, and the search for the level that meets a target."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from waterfill.errors import TargetError, UsageError, WaterfillError
from waterfill.protocols import Progress, QuadraticForm, Quantizer
from waterfill.quantize import Vector
from waterfill.records import Inventory, Quantized, Weight
from waterfill.resume.folder import NOTHING_KEPT, Memo

T = TypeVar("T")
LOWEST_LOG2, HIGHEST_LOG2 = -48.0, 24.0
"""Base-2 logarithms of the water levels between which a search looks, relative to the mean cost of a zeroed weight."""


@dataclass(frozen=True, eq=False)
class Job:
    """One tensor of a plan: what quantizes it and what its errors cost."""

    weight: Weight
    quantizer: Quantizer
    form: QuadraticForm | None


def plan(
    inventory: Inventory, forms: Mapping[str, QuadraticForm], quantizers: Sequence[Quantizer], power: float = 1.0
) -> dict[str, Job]:
    """Choose a quantizer for every weight.

    Args:
        inventory: the model.
        forms: what errors cost, by name. A vector without one is rounded to a few mantissa bits.
        quantizers: the quantizer of the matrices, alone in its sequence.
        power: the importances of the matrices are tempered to this power, see `temper`.

    Raises:
        UsageError: there are several quantizers.
    """
    if len(quantizers) != 1:
        raise UsageError(f"Got {len(quantizers)} quantizers; expected one, which quantizes every matrix.")
    matrices = {name: weight for name, weight in inventory.weights.items() if not weight.is_vector}
    tempered = dict(forms) | temper({name: forms[name] for name in matrices if name in forms}, power)
    scale = mean_power({name: Job(weight, quantizers[0], tempered.get(name)) for name, weight in matrices.items()})
    return {
        name: Job(weight, Vector(scale) if weight.is_vector else quantizers[0], tempered.get(name))
        for name, weight in inventory.weights.items()
    }


def temper(forms: Mapping[str, QuadraticForm], power: float) -> dict[str, QuadraticForm]:
    """Take importances to a power: `I' = m (I / m)^power`, with m their mean over all the given tensors.

    An importance is exact for small errors only. At low rates the errors of unimportant weights are large and add up
    to more than it says, so a power below 1 measures better; 0 gives one step for the whole model.

    Of a form with cross terms the scales are taken to the power, and its shape stays, see `KroneckerForm.tempered`. So
    m is the mean over all weights of what is tempered: of scales there, of the diagonal in all other forms.
    """
    if power == 1.0 or not forms:
        return dict(forms)
    count = sum(form.diagonal().size for form in forms.values())
    mean = sum(form.scale_total for form in forms.values()) / count
    if not mean > 0:
        return dict(forms)
    return {name: form.tempered(mean, power) for name, form in forms.items()}


def quantize(
    jobs: Mapping[str, Job], water_level: float, progress: Progress | None = None, memo: Memo = NOTHING_KEPT
) -> dict[str, Quantized]:
    """Quantize every weight at one water level, in parallel; the result does not depend on the number of threads."""
    done: dict[str, Quantized] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        each = pool.map(lambda job: quantize_job(job, water_level, memo), jobs.values())
        for name, item in zip(jobs, each, strict=True):
            done[name] = item
            if progress is not None:
                progress("quantize", len(done), len(jobs))
    return done


def quantize_job(job: Job, water_level: float, memo: Memo = NOTHING_KEPT) -> Quantized:
    """Quantize one weight, or find it quantized; vectors are quantized sooner than found.

    Raises:
        WaterfillError: the quantizer refuses it; the text names the tensor.
    """

    def compute() -> Quantized:
        return job.quantizer.quantize(job.weight, job.form, water_level)

    try:
        if job.weight.is_vector:
            return compute()
        return memo.once(("quantized", job.weight, job.quantizer, job.form, water_level), compute)
    except WaterfillError as error:
        raise type(error)(f"tensor {job.weight.name!r} {job.weight.layout.shape}: {error}") from error


def mean_power(jobs: Mapping[str, Job]) -> float:
    """Mean of `I_w w^2` over all matrices: the cost per weight of setting everything to zero, the scale of levels."""
    total, count = 0.0, 0
    for job in jobs.values():
        if not job.weight.is_vector:
            squares = np.square(job.weight.matrix, dtype=np.float64)
            total += float(squares.sum() if job.form is None else (squares * job.form.diagonal()).sum())
            count += squares.size
    return total / count if total > 0 else 1.0


# The search


@dataclass(frozen=True)
class Trial(Generic[T]):
    """One try: the base-2 logarithm of the water level, what was measured there, and what was made."""

    level: float
    value: float
    made: T


def lowest_within(
    measure: Callable[[float], Trial[T]],
    limit: float,
    first: float,
    *,
    slope: float,
    within: float,
    precision: float,
    span: tuple[float, float] = (LOWEST_LOG2, HIGHEST_LOG2),
    tries: int = 24,
) -> Trial[T]:
    """The lowest level at which a quantity that falls with the level (such as a size) is at most `limit`.

    Brackets the limit, then interpolates the logarithm of the quantity, halving now and then.

    Args:
        measure: try a level (a base-2 logarithm).
        limit: largest value allowed, above zero.
        first: where to start.
        slope: guess of d log2(value) / d level, negative, for the steps before the limit is bracketed.
        within: relative distance below the limit that is near enough.
        precision: width of the bracket that is narrow enough.
        span: lowest and highest level.
        tries: how many levels to try at most.

    Raises:
        TargetError: even at the highest level the quantity is above the limit; its only argument is the value there.
    """
    above: Trial[T] | None = None  # above the limit: the level must rise
    below: Trial[T] | None = None  # within the limit: it may fall
    level = first
    for count in range(tries):
        trial = measure(float(np.clip(level, *span)))
        if trial.value > limit:
            above = trial if above is None or trial.level > above.level else above
            if trial.level >= span[1]:
                raise TargetError(trial.value)
        else:
            below = trial if below is None or trial.level < below.level else below
            if trial.value >= limit * (1 - within) or trial.level <= span[0]:
                return trial
        if above and below and below.level - above.level <= precision:
            break
        level = _next_level(above, below, limit * (1 - within / 2), slope, count, 2 * precision)
    if below is None:
        below = measure(span[1])
        if below.value > limit:
            raise TargetError(below.value)
    return below


def _next_level(
    above: Trial[T] | None, below: Trial[T] | None, aim: float, slope: float, count: int, least: float
) -> float:
    """Where to try next: beyond the only side known, by `least` at least, or between both."""
    if above is None or below is None:
        known = above or below
        assert known is not None
        reach = float(np.log2(np.clip(aim / max(known.value, 1e-9 * aim), 1 / 16, 16))) / slope
        return known.level + 1.4**count * (max(reach, least) if above else min(reach, -least))
    if count % 3 == 2 or below.value <= 0 or not np.isfinite(above.value):
        return (above.level + below.level) / 2
    high, low = np.log(above.value), np.log(below.value)
    share = (high - np.log(aim)) / max(high - low, 1e-12)
    return above.level + float(np.clip(share, 0.02, 0.98)) * (below.level - above.level)
