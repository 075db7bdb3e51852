"""A file between two others: tensors of the finer one where they fit, and rows of one more."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from waterfill.compression.encoder import Encoder, Job
from waterfill.compression.in_memory import FileCandidate
from waterfill.compression.shortfall import FAR
from waterfill.reconstruct import errors
from waterfill.records import Quantized

ROW_TRIES = 4
"""How many shares of the rows of a matrix are tried until they fit."""

ROW_LEVELS = (1, 2)
"""Fractions of the level of the finer trial at which rows are tried: some of the rows may take fewer bits at half."""


def mixed(coarse: FileCandidate, fine: FileCandidate, limit: float) -> FileCandidate:
    """Take as many tensors of the finer trial as fit, those with the most bits first, and rows of one more.

    Rate-distortion optimised rounding can jump from one level to the next, past the limit; tensors jump one by one, and
    in the last one some rows are set to zero. Matrices that look at activations are quantized anew, and stay out.

    Args:
        coarse: a trial of at most `limit` bytes.
        fine: a trial of the same walk that is larger.
        limit: bytes.
    """
    walk = coarse.walk
    known = {name: item for name, item in coarse.coded.quantized.items() if _is_free(coarse, name)}
    more = {name: fine.coded.quantized[name].bits - item.bits for name, item in known.items()}
    left, taken = 8 * (limit - coarse.size_bytes), dict(known)
    for name in sorted(more, key=lambda name: -more[name]):
        if 0 < more[name] <= left:
            taken[name], left = fine.coded.quantized[name], left - more[name]
    found = coarse
    if any(taken[name] is not item for name, item in known.items()):
        found = walk.trial(coarse.water_level, taken)
        found = found if coarse.size_bytes <= found.size_bytes <= limit else coarse
    if walk.model is not None or found.size_bytes >= limit * (1 - FAR):  # with data matrices are quantized again
        return found
    return _with_rows(found, fine, limit)


def _is_free(candidate: FileCandidate, name: str) -> bool:
    """Whether a tensor is quantized for its own values."""
    walk = candidate.walk
    if name not in walk.jobs or name in walk.visited:
        return False
    return walk.model is None or not walk.jobs[name].weight.is_vector


def _with_rows(coarse: FileCandidate, fine: FileCandidate, limit: float) -> FileCandidate:
    """Take as many rows as fit of the matrix that takes the most bits more in a finer trial without data."""
    walk = coarse.walk
    more = {name: fine.coded.quantized[name].bits - coarse.coded.quantized[name].bits for name in walk.jobs}
    name = max(more, key=lambda name: more[name])
    if walk.jobs[name].weight.is_vector or more[name] <= 0:
        return coarse
    share = min(1.0, 8 * (limit - coarse.size_bytes) / more[name])
    found = [_rows_that_fit(coarse, name, share, fine.water_level / finer, limit) for finer in ROW_LEVELS]
    return min((each for each in (coarse, *found) if each), key=lambda each: each.coded.quantized[name].distortion)


def _rows_that_fit(coarse: FileCandidate, name: str, share: float, level: float, limit: float) -> FileCandidate | None:
    """A trial with a share of the rows of a matrix at a level, or fewer; None where it is too large every time."""
    walk = coarse.walk
    for _ in range(ROW_TRIES):
        part = some_rows(walk.encoder, walk.jobs[name], share, level)
        found = walk.trial(coarse.water_level, _own(coarse) | {name: part})
        if found.size_bytes <= limit:
            return found
        share *= 0.97 * limit / found.size_bytes
    return None


def _own(candidate: FileCandidate) -> dict[str, Quantized]:
    """What the walk has quantized, without tensors that are stored without loss."""
    return {name: item for name, item in candidate.coded.quantized.items() if name in candidate.walk.jobs}


def some_rows(encoder: Encoder, job: Job, share: float, level: float) -> Quantized:
    """Quantize a share of the rows of a matrix, those that cost most; the others are zero.

    Between a matrix of zeros and one of two values there is no step; rows share the bits in between.
    """
    matrix, form = job.weight.matrix, job.form
    price = 1.0 if form is None else form.diagonal()
    order = np.argsort(-(np.square(matrix, dtype=np.float64) * price).sum(1), kind="stable")
    kept = np.zeros_like(matrix)
    some = order[: int(share * len(order))]
    kept[some] = matrix[some]
    item = encoder.quantize_one(replace(job, weight=replace(job.weight, matrix=kept)), level)
    error = errors(job.weight, item.symbols, item.rule)
    return replace(item, distortion=float(np.square(error).sum()) if form is None else form.cost(error))
