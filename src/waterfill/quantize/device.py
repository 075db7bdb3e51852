"""The search for paths on a device, with the results of the processor: moves arrays, launches kernels, checks them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from waterfill.devices import launch, side_by_side
from waterfill.quantize.branch_kernels import PRICES
from waterfill.quantize.feedback_kernels import Feed, Prices
from waterfill.quantize.viterbi_kernels import Code
from waterfill.records import Floats, Symbols

SEGMENT, PROGRAMS = 1024, 1024
"""Paths are cut into segments of so many weights at least, and no more segments than that where these are longer."""

WARM = 216
"""Segments are searched from so many weights for each bit of the state before them: of 1,000 weights with normal
densities at .7 to 4 bits, 64 states need 900, one segment in a thousand; ten times as many need 200 less."""

BLOCK = 128
"""Weights of a program that prices branches."""

MEMORY = 1 << 30
"""Bytes that a search takes at once, about; several threads search side by side."""

TAKEN = 96
"""Bytes that a weight takes, besides a bit for each state: 57 while paths are searched, the rest before."""


@dataclass(frozen=True, eq=False)
class DeviceTrellis:
    """A trellis on a device.

    Attributes:
        odds: int32 [states], the subset each state picks.
        flips: int32 [states], its parity under h0.
        unit: float32 [2], integers for a cost of one, and the largest one.
        far: cost to start at another state.
    """

    odds: Any
    flips: Any
    unit: Any
    far: int

    @classmethod
    def of(cls, code: Code, device: torch.device) -> DeviceTrellis:
        """Move a trellis to a device."""
        log_states = code.flips.size.bit_length() - 1
        odds, flips = (_moved(each.astype(np.int32), device) for each in (code.subsets, code.flips))
        return cls(odds, flips, _moved(code.unit, device), int(code.unit[1]) * (log_states + 1))

    @property
    def states(self) -> int:
        """How many there are."""
        return int(self.odds.numel())

    @property
    def log_states(self) -> int:
        """Their logarithm."""
        return self.states.bit_length() - 1

    @property
    def warps(self) -> int:
        """Of a program that extends all paths."""
        return min(max(self.states // 64, 1), 8)


class Order(NamedTuple):
    """The weights on some paths.

    Attributes:
        strands: int32 [paths + 1], where each path begins in the order.
        order: int32 [n or more], which weight is at each place.
        places: int32 [n], the place of each weight; -1 for those that stand aside.
    """

    strands: Any
    order: Any
    places: Any

    @classmethod
    def of(cls, stays: Any, span: int) -> Order:
        """The order of weights [n] of which some stay aside, bool [n], on paths of so many weights."""
        size, on_path = stays.numel(), ~stays
        done = torch.cumsum(on_path, 0)
        ends = torch.arange(span, size + span, span, device=stays.device).clamp(max=size)
        strands = torch.cat((done.new_zeros(1), done[ends - 1]))
        places = torch.where(on_path, done - 1, -1)
        return cls(strands.int(), torch.nonzero(on_path).flatten().int(), places.int())


class Segments(NamedTuple):
    """What a search of segments leaves behind; see `device_kernels.extend_segments`.

    Attributes:
        histories: int32 [paths, segments, length / 32, states].
        before: int32 [paths, segments, states].
        after: the same.
        best: int32 [paths, segments].
        starts: int32 [paths, segments, states].
    """

    histories: Any
    before: Any
    after: Any
    best: Any
    starts: Any

    @classmethod
    def room(cls, paths: int, longest: int, states: int, device: torch.device) -> Segments:
        """Room for so many paths of so many weights."""
        new = functools.partial(torch.empty, dtype=torch.int32, device=device)
        whole = 1 << (longest - 1).bit_length()
        length = max(SEGMENT, min(1 << (paths * longest // PROGRAMS).bit_length(), whole))
        segments = -(-longest // length)
        every = paths, segments, states
        return cls(new(*every[:2], length // 32, states), new(every), new(every), new(paths, segments), new(every))

    @property
    def length(self) -> int:
        """Weights of a segment."""
        return 32 * int(self.histories.shape[2])


@dataclass(frozen=True, eq=False)
class DeviceSearch:
    """A search on a device.

    Attributes:
        trellis: the trellis.
        prices: float32, of all levels, flat.
        shrink: float32 [3], how far the levels of magnitude 1, 2, >= 3 lie towards zero.
        zero: whether zero is in subset 1 too.
        device: where it runs.
    """

    trellis: DeviceTrellis
    prices: Any
    shrink: Any
    zero: bool
    device: torch.device

    @classmethod
    def of(cls, code: Code, prices: Floats, shrink: Floats, zero: bool, name: str) -> DeviceSearch:
        """Move what a search needs to a device; levels of magnitude 0, 1, 2, >= 3 lie `shrink` towards zero."""
        device = torch.device(name)
        moved = _moved(shrink[1:].astype(np.float32), device)
        return cls(DeviceTrellis.of(code, device), _moved(prices.reshape(-1), device), moved, zero, device)

    def constants(self, room: Segments) -> dict[str, int]:
        """Of the programs for segments, with the warps of each."""
        trellis = self.trellis
        states = {"STATES": trellis.states, "LOG": trellis.log_states}
        return states | {"SEGMENT": room.length, "num_warps": trellis.warps}

    def paths(self, values: Any, weights: Any, starts: Any, stays: Any, span: int) -> Any:
        """Levels int32 [n] of the paths of the lowest cost from state 0 to any state.

        Args:
            values: float32 [n], in steps, as are the next ones on the device.
            weights: float32 [n] of the squared errors, or [1].
            starts: int32 [n], where the prices of each begin, or [1].
            stays: bool [n], of elements that are in subset 0 whatever the state is, which stays.
            span: weights of a path.
        """
        from waterfill.quantize import device_kernels as kernels

        size, new = values.numel(), functools.partial(torch.empty, dtype=torch.int32, device=self.device)
        order, costs, levels, found = Order.of(stays, span), new(size, 4), new(size, 4), new(size)
        known = values, weights, starts, order.places, size, self.prices, self.shrink, self.trellis.unit
        flags = {"EACH": weights.numel() > 1, "PRICED": starts.numel() > 1, "ZERO": self.zero, "BLOCK": BLOCK}
        programs = (-(-size // BLOCK),)
        launch(kernels.price_weights, programs, *known, costs, levels, found, **flags)
        paths = order.strands.numel() - 1
        longest = int((order.strands[1:] - order.strands[:-1]).max())
        if not longest:
            return found
        room = Segments.room(paths, longest, self.trellis.states, self.device)
        begins = torch.zeros(paths + 1, dtype=torch.int32, device=self.device)
        unlike = torch.zeros(1, dtype=torch.int32, device=self.device)
        for warm in _warmer(self.trellis.log_states, longest):
            self.extend(costs, order.strands, begins, warm, room)
            self.decide(order, room, levels, found, begins, unlike)
            if not int(unlike):
                break
            unlike.zero_()
        return found

    def extend(self, costs: Any, strands: Any, begins: Any, warm: int, room: Segments) -> None:
        """Search all segments of some paths, each from so many weights before it on."""
        from waterfill.quantize import device_kernels as kernels

        trellis, (paths, segments) = self.trellis, room.best.shape
        known = costs, strands, begins, trellis.odds, trellis.flips, trellis.far, warm, segments
        launch(kernels.extend_segments, (paths, segments), *known, *room, **self.constants(room))

    def decide(
        self, order: Order, room: Segments, levels: Any, found: Any, begins: Any, unlike: Any, feed: Any = None
    ) -> None:
        """Follow the paths back; with `feed` keep errors as well: weights in steps, the step and the errors."""
        from waterfill.quantize import device_kernels as kernels

        trellis, (paths, segments) = self.trellis, room.best.shape
        known = order.strands, order.order, trellis.odds, trellis.flips, segments, *room, levels, found, begins, unlike
        fed, constants = feed or (found, found, found), self.constants(room)
        launch(kernels.decide_segments, (paths, segments), *known, *fed, FEEDS=feed is not None, **constants)


def _moved(array: NDArray[Any], device: torch.device) -> Any:
    """An array on a device."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def _warmer(log_states: int, longest: int) -> Iterator[int]:
    """Weights before a segment from which it is searched: more and more, up to all that there are."""
    warm = WARM * log_states
    while warm < longest:
        yield warm
        warm *= 2
    yield longest


def best_paths(
    x: Floats,
    weights: Floats,
    starts: NDArray[np.int32],
    stays: NDArray[np.bool_],
    span: int,
    search: DeviceSearch,
) -> Symbols:
    """Levels int32 [n] of the paths of the lowest cost, span by span.

    Args:
        x: weights in steps [n].
        weights: of the squared errors [n], or [1].
        starts: where the prices of each begin [n], or [1].
        stays: of elements that are in subset 0 whatever the state is, which stays, [n] or [1].
        span: levels after which the state is 0 again.
        search: what is sought.
    """
    levels, taken = np.empty(x.size, np.int32), TAKEN + search.trellis.states // 8
    once = max(1, MEMORY // (span * taken)) * span
    with side_by_side(search.device):
        for start in range(0, x.size, once):
            some = slice(start, min(start + once, x.size))
            parts = (each[some] if each.size > 1 else each for each in (x, weights, starts, stays))
            values, errors, begins, aside = (_moved(part, search.device) for part in parts)
            found = search.paths(values, errors, begins, aside.expand(values.numel()), span)
            levels[some] = found.cpu().numpy()
    return levels


def decided_columns(
    x: Floats,
    aims: Floats,
    feed: Feed,
    prices: Prices,
    aside: NDArray[np.bool_],
    search: DeviceSearch,
    block: int,
    span: int,
) -> Symbols:
    """Levels int32 [out, in] of a path of low cost down the columns, decided at the end of every column.

    Args:
        x: weights in steps [out, in].
        aims: what columns aim at where nothing before them has errors, in steps [out, in].
        feed: how errors of earlier columns come in, as `feedback_kernels` has it.
        prices: of the levels, likewise.
        aside: bool [exponents], of elements that are in subset 0 whatever the state is, which stays.
        search: what is sought.
        block: columns that get what those before them leave by one product.
        span: columns after which the state is 0 again.
    """
    with side_by_side(search.device):
        columns = Columns.of(x, aims, feed, prices, aside, search)
        warmer = iter(_warmer(search.trellis.log_states, len(x)))
        warm = next(warmer)
        for base in range(0, x.shape[1], block):
            stop = min(base + block, x.shape[1])
            carried = columns.carried(base, stop)
            while not columns.search_block(base, stop, carried, span, warm):
                warm = next(warmer)
        return np.ascontiguousarray(columns.levels.T.cpu().numpy())


@dataclass(frozen=True, eq=False)
class Columns:
    """A matrix on a device that is searched column by column.

    Attributes:
        values: float32 [in, out], in steps.
        aims: likewise, what columns aim at where nothing before them has errors.
        weights: float32 [in, out] of the squared errors, or [1, 1].
        feed: as `feedback_kernels.Feed`, but errors are [in, out].
        starts: int32 [out] and [in], where the prices of rows and columns begin.
        orders: of the rows of every column.
        heights: rows of every column that are on the path.
        search: what is sought.
        levels: int32 [in, out], filled.
        begins: int32 [in + 1], the state that every column starts at.
        unlike: int32 [1], whether a segment did not begin as the one before it ended.
    """

    values: Any
    aims: Any
    weights: Any
    feed: Feed
    starts: tuple[Any, Any]
    orders: Callable[[int], Order]
    heights: list[int]
    search: DeviceSearch
    levels: Any
    begins: Any
    unlike: Any

    @classmethod
    def of(
        cls, x: Floats, aims: Floats, feed: Feed, prices: Prices, aside: NDArray[np.bool_], search: DeviceSearch
    ) -> Columns:
        """Move a matrix to a device."""
        move = functools.partial(_moved, device=search.device)
        out, inputs = x.shape
        new = functools.partial(torch.zeros, dtype=torch.int32, device=search.device)
        rows, columns = move(prices.rows), move(prices.columns)
        orders, heights = _orders(rows, columns, move(aside))
        errors = torch.zeros(inputs, out, device=search.device)
        moved = Feed(move(feed.factors), move(feed.gains), move(feed.steps), move(feed.classes).int(), errors)
        starts = (PRICES * rows).int(), (PRICES * columns).int()
        values, aims = move(x).T.contiguous(), move(aims).T.contiguous()
        known = values, aims, move(prices.weights), moved, starts, orders, heights, search
        return cls(*known, new(inputs, out), new(inputs + 1), new(1))

    def carried(self, base: int, stop: int) -> Any:
        """What is added to the columns of a block for their aims, of errors of all before it, too, [columns, out]."""
        factors, gains, _, classes, errors = self.feed
        carried = self.aims[base:stop] - self.values[base:stop]
        for k in range(len(factors) if base else 0):
            mine = torch.nonzero(classes == k).flatten() if len(factors) > 1 else slice(None)
            left = factors[k, base:stop, :base] @ errors[:base, mine]
            carried[:, mine] += gains[k, base:stop, None] * left
        return carried

    def search_block(self, base: int, stop: int, carried: Any, span: int, warm: int) -> bool:
        """Search the columns of a block; whether all segments began as those before them ended."""
        height, states = self.values.shape[1], self.search.trellis.states
        room = Segments.room(1, height, states, self.search.device)
        costs, levels = (torch.empty(height, 4, dtype=torch.int32, device=self.search.device) for _ in range(2))
        for column in range(base, stop):
            if column % span == 0:
                self.begins[column] = 0
            order = self.orders(column)
            self._price(column, base, carried[column - base], order, costs, levels)
            if not self.heights[column]:
                self.begins[column + 1] = self.begins[column]
                continue
            begins = self.begins[column:]
            self.search.extend(costs, order.strands, begins, warm, room)
            feed = self.values[column], self.feed.steps[column:], self.feed.errors[column]
            self.search.decide(order, room, levels, self.levels[column], begins, self.unlike, feed)
        unlike = bool(self.unlike)
        self.unlike.zero_()
        return not unlike

    def _price(self, column: int, base: int, carried: Any, order: Order, costs: Any, levels: Any) -> None:
        """Price the branches of a column."""
        from waterfill.quantize import device_kernels as kernels

        inputs, height = self.values.shape
        weights = self.weights[column if len(self.weights) > 1 else 0]
        known = self.values[column], carried, weights, self.starts[0], self.starts[1][column:], order.places
        search, (factors, gains, steps, classes, errors) = self.search, self.feed
        priced = search.prices, search.shrink, search.trellis.unit, costs, levels, self.levels[column]
        here = factors[:, column, base:], gains[:, column:]
        fed = *here, classes, steps[column:], errors[base:], column - base, inputs, height
        launch(
            kernels.price_column,
            (-(-height // BLOCK),),
            *known,
            *priced,
            *fed,
            EACH=weights.numel() > 1,
            BLOCK=BLOCK,
        )


def _orders(rows: Any, columns: Any, aside: Any) -> tuple[Callable[[int], Order], list[int]]:
    """The rows of every column that are on the path, and how many there are."""
    height, device = len(rows), rows.device
    if not bool(aside.any()):
        every = torch.arange(height, dtype=torch.int32, device=device)
        order = Order(torch.tensor([0, height], dtype=torch.int32, device=device), every, every)
        return lambda _: order, [height] * len(columns)
    stays = aside[columns[:, None] + rows]
    done = torch.cumsum(~stays, 1)
    strands = torch.stack((torch.zeros_like(done[:, -1]), done[:, -1]), 1).int()
    orders, places = torch.argsort(stays.int(), dim=1, stable=True).int(), torch.where(stays, -1, done - 1).int()
    return lambda column: Order(strands[column], orders[column], places[column]), done[:, -1].tolist()
