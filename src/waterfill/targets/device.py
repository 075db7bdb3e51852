"""Decode tensors on a device: what goes there is the compressed stream, and the values are those of all readers."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from waterfill.codec import lanes
from waterfill.codec.order import places
from waterfill.codec.pieces import Part
from waterfill.codec.trellis import PARITIES, PathModel
from waterfill.devices import launch, launching_on
from waterfill.errors import FormatError
from waterfill.io.arrays import LARGEST
from waterfill.models.arrays import dtype_name
from waterfill.reconstruct import fill, step_table
from waterfill.records import Floats, Layout, Rule, Uniform


class LaneStream(NamedTuple):
    """A stream that is one piece of a path with lanes.

    Attributes:
        data: its states and words.
        model: what codes it.
        start: the first of its symbols among those of the tensor.
        label: what errors call it.
    """

    data: bytes | memoryview
    model: PathModel
    start: int
    label: str


class OnDevice:
    """A tensor on a device, without a basis, whose matrix is a view of it.

    Streams wait until the last one is there, and are decoded together: each is a row of steps, one after the other, so
    a device wants many at once. What is not a path with lanes is decoded on the processor.
    """

    def __init__(self, tensor: Tensor, layout: Layout) -> None:
        self._tensor, self._layout = tensor, layout
        self._streams: list[tuple[LaneStream, Uniform, bool]] = []
        self._matrix: Floats | None = None
        self._lock = threading.Lock()

    @property
    def device(self) -> torch.device:
        """Where the tensor is."""
        return self._tensor.device

    def put(self, symbols: Part, rule: Rule, start: int, down: bool) -> None:
        """Reconstruct symbols on the processor."""
        with self._lock:
            if self._matrix is None:
                self._matrix = np.empty(self._shape, np.float32)
        fill(self._matrix, symbols, rule, self._layout, start, down)

    def put_stream(self, stream: LaneStream, rule: Uniform, down: bool) -> None:
        """Keep a stream until all are there."""
        with self._lock:
            self._streams.append((stream, rule, down))

    def finished(self) -> Tensor:
        """The tensor, with all its streams decoded.

        Raises:
            FormatError: a stream is damaged.
        """
        device, limit = self._tensor.device, LARGEST[dtype_name(self._tensor.dtype)]
        if self._matrix is not None:
            found = torch.from_numpy(self._matrix).to(device)
        else:
            found = torch.empty(self._shape, dtype=torch.float32, device=device)
        if self._streams:
            _, rule, down = self._streams[0]
            decode([stream for stream, _, _ in self._streams], rule, self._layout, down, found)
        with torch.no_grad():
            into = self._tensor.mT if self._layout.transposed else self._tensor.flatten(1)
            into.copy_(found.clamp_(-limit, limit))
        return self._tensor

    @property
    def _shape(self) -> tuple[int, int]:
        return self._layout.axes[0], self._layout.numel // self._layout.axes[0]


def decode(streams: Sequence[LaneStream], rule: Uniform, layout: Layout, down: bool, matrix: Tensor) -> None:
    """Decode the streams of one tensor into its matrix, float32 [out, in] on a device.

    Raises:
        FormatError: one of them is damaged.
    """
    from waterfill.targets import device_kernels as kernels

    models = [stream.model for stream in streams]
    trellis, count, length = models[0].trellis, models[0].lanes[0], models[0].length
    depth = max(model.lanes[1] for model in models) // length
    moved = [torch.from_numpy(part).to(matrix.device) for part in tables_of(streams, rule, layout, down)]
    failed = torch.empty(len(streams), dtype=torch.int32, device=matrix.device)
    flips, picks = PARITIES[trellis.log_states]
    apart, next_place = (1, matrix.shape[1]) if down else (matrix.shape[1], 1)
    known = flips >> 1, picks >> 1, int(trellis.zero), depth, length, apart, next_place
    with launching_on(matrix.device):
        launch(kernels.decode_streams, (len(streams),), *moved, matrix, failed, *known, LANES=count, num_warps=1)
    for stream, code in zip(streams, failed.tolist(), strict=True):
        if code:
            raise FormatError(f"{stream.label}: {_REASONS[code]}")


_REASONS = {1: "a stream does not end where its symbols do", 2: "an integer is beyond 32 bits"}


class StreamTables(NamedTuple):
    """What a device needs of the streams of one tensor, see `device_kernels.decode_streams`."""

    words: NDArray[np.int16]
    ends: NDArray[np.int64]
    states: NDArray[np.int64]
    pieces: NDArray[np.int64]
    lines: NDArray[np.int32]
    within: NDArray[np.int32]
    entries: NDArray[np.int32]
    slots: NDArray[np.int32]
    lows: NDArray[np.uint8]
    lasts: NDArray[np.int64]
    steps: Floats
    shrink: NDArray[np.int64]


class Joined:
    """Arrays one after the other."""

    def __init__(self) -> None:
        self._parts: list[NDArray[Any]] = []
        self.size = 0

    def add(self, part: NDArray[Any]) -> int:
        """Add one; where it begins."""
        self._parts.append(part)
        self.size += len(part)
        return self.size - len(part)

    def whole(self) -> NDArray[Any]:
        """All of them."""
        return np.concatenate(self._parts)


def tables_of(streams: Sequence[LaneStream], rule: Uniform, layout: Layout, down: bool) -> StreamTables:
    """Put the parts of all streams one after the other; those with the same tables share them.

    Raises:
        FormatError: a stream is shorter than its states.
    """
    words, states, lines, within, entries, slots, lows, lasts, steps = (Joined() for _ in range(9))
    ends, pieces = [0], []
    known: dict[tuple[bytes, tuple[int, int]], tuple[int, int]] = {}
    for data, model, start, label in streams:
        head = 4 * model.lanes[0]
        if len(data) < head or len(data) % 2:
            raise FormatError(f"{label}: a stream of {len(data)} bytes is cut; expected an even number from {head}")
        states.add(np.frombuffer(data, "<u4", head // 4).astype(np.int64))
        words.add(np.frombuffer(data, "<i2", offset=head).astype(np.int16))
        ends.append(words.size)
        key = model.exponents.tobytes(), model.families
        if key not in known:
            lasts.add(model.last)
            known[key] = slots.add(model.slots.view(np.int32)), lows.add(model.lows)
        found = places(layout, rule.scales, start, start + model.size, down)
        sums, inner = model.sums()
        begins = lines.add(np.stack((sums, found.lines), 1)), within.add(np.stack((inner, found.within), 1))
        tables = entries.add(lanes.lane_entries(model)), steps.add(step_table(rule, found)), *known[key]
        pieces.append((found.first, len(sums), *begins, *tables))
    firsts = np.array(ends, np.int64), states.whole(), np.array(pieces, np.int64)
    places_of = lines.whole(), within.whole(), entries.whole()
    coders = slots.whole(), lows.whole(), lasts.whole(), steps.whole()
    return StreamTables(words.whole(), *firsts, *places_of, *coders, np.array(rule.shrink, np.int64))
