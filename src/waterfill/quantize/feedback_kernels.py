"""Hot loops of error feedback; plain arrays in and out, compiled on first use and cached.

Weights are in steps, column by column, [columns, rows]. What is aimed at in column c is
`x[c] + carried[c] + gain_c sum_{b < c} factor[c, b] error_b`, with the factor and the gain of the class of the row: the
errors of a row's earlier weights are made up for.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from waterfill.compiled import kernel
from waterfill.quantize.branch_kernels import PRICES
from waterfill.quantize.viterbi_kernels import best_state, no_trace, paths_from_start, restart, search, trace


class Feed(NamedTuple):
    """How errors of earlier columns come in.

    Attributes:
        factors: float32 [classes, in, in], of which what is below the diagonal counts.
        gains: float32 [classes, in], of a column.
        steps: float32 [in], by which errors in steps are multiplied before.
        classes: int64 [rows], which one a row is of.
        errors: float32 [rows, in], so multiplied, filled; 0 for what is not decided.
    """

    factors: Any
    gains: Any
    steps: Any
    classes: Any
    errors: Any


class Prices(NamedTuple):
    """What levels cost: `weight * error^2 + price`.

    Attributes:
        weights: float32 [columns, rows] of the squared errors, or [1, rows] when they are those of every column.
        rows: int64 [rows]; with those of columns the exponents of `bits`.
        columns: int64 [columns].
        bits: what they cost, float32 [exponents, 2, 512], see `level_prices`; of free levels [exponents, 1, 256].
    """

    weights: Any
    rows: Any
    columns: Any
    bits: Any


@njit(fastmath={"reassoc", "contract", "nsz"})
def _dot(one, other):
    total = np.float32(0)
    for i in range(one.size):
        total += one[i] * other[i]
    return total


@kernel
def aim(x, carried, feed, column, base, target):
    """What the rows of a column aim at, with the errors of the columns from `base` on."""
    for r in range(x.size):
        k = feed.classes[r]
        before = _dot(feed.factors[k, column, base:column], feed.errors[r, base:column])
        target[r] = x[r] + carried[r] + feed.gains[k, column] * before


@kernel
def scalar_span(x, carried, feed, first, base, prices, levels):
    """Round column by column to the lowest cost; arguments as `decided_span` has them."""
    columns, rows = x.shape
    target = np.empty(rows, np.float32)
    top = len(prices.bits) - 1
    for c in range(columns):
        aim(x[c], carried[c], feed, first + c, base, target)
        for r in range(rows):
            bits = prices.bits[min(max(prices.rows[r] + prices.columns[c], 0), top), 0]
            weight = prices.weights[c if len(prices.weights) > 1 else 0, r]
            magnitude = abs(target[r])
            best, best_cost = 0, weight * magnitude * magnitude + bits[0]
            nearest = np.int64(magnitude + np.float32(0.5))
            for candidate in range(max(1, nearest - 1), nearest + 2):
                error = magnitude - np.float32(candidate)
                cost = weight * error * error + bits[min(candidate, 255)]
                if cost < best_cost:
                    best, best_cost = candidate, cost
            levels[c, r] = best if target[r] > 0 else -best
            feed.errors[r, first + c] = (x[c, r] - np.float32(levels[c, r])) * feed.steps[first + c]


@njit
def find_prices(prices, column, aside, starts, stays):
    """Where the prices of the rows of a column begin, and which rows stand aside."""
    for r in range(starts.size):
        exponent = prices.rows[r] + prices.columns[column]
        starts[r], stays[r] = np.int32(exponent * PRICES), aside[exponent]


@kernel
def decided_span(x, carried, feed, first, base, prices, aside, code, levels):
    """A path of low cost down the columns, from state 0 to any state, decided at the end of every column.

    Args:
        x: float32 [columns, rows], in steps.
        carried: float32 [columns, rows], feedback of the columns before `base`.
        feed: of those from there on.
        first: the first column of the span in the matrix.
        base: a column up to the first.
        prices: of the levels.
        aside: bool [exponents], of elements that are in subset 0 whatever the state is, which stays.
        code: the trellis.
        levels: int32 [columns, rows], filled.
    """
    columns, rows = x.shape
    target, starts = np.empty(rows, np.float32), np.empty(rows, np.int32)
    found, paths, bits = no_trace(rows, code), paths_from_start(code), prices.bits.reshape(-1)
    for c in range(columns):
        aim(x[c], carried[c], feed, first + c, base, target)
        find_prices(prices, c, aside, starts, found.stays)
        weights = prices.weights[c if len(prices.weights) > 1 else 0]
        paths = search(target, weights, starts, bits, False, None, code, paths, found)
        state = best_state(paths)
        trace(state, found, code, levels[c])
        restart(paths, state, code)
        leave(x[c], levels[c], feed, first + c)


@njit
def leave(x, levels, feed, column):
    """Fill the errors of the first weights of a column."""
    step = feed.steps[column]
    for r in range(levels.size):
        feed.errors[r, column] = (x[r] - np.float32(levels[r])) * step
