"""Where the CPU seconds of one compression go: `python stage_profile.py CASE SOURCES OUT`, then JSON.

A sampling profile of one thread: pools run their work at once in the thread that asks, and libraries have one thread,
so that everything is seen. Each sample is charged with the CPU time since the one before, and belongs to the innermost
function of the library, compiled or not, whose module stands for a stage; helpers that all stages share belong to who
called them.
"""

from __future__ import annotations

import concurrent.futures
import json
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

from numba.core.registry import CPUDispatcher

EVERY = 0.005
"""CPU seconds between two samples."""

DEPTH = 8
"""Functions of the library that are kept of a stack, from the innermost on."""

OTHER = "other"
PASSES = "forward, backward, reruns"
SUMS = "sums of Gram matrices"
SINGLE = "importances of single samples"
TARGETS = "corrected targets"
FILTER = "filter"
SPAN = "Viterbi and feedback inside a span"
UPDATE = "update behind a span"
FITS = "fits of tables"
PRODUCTS = "centroids, cost, loss"
LIMITS = "sources and limits"
CODING = "coding, files"
CHECKS = "checks of the contract"

STAGES = (
    (r"quantize/feedback:(_columns|_carried|_feed$|\w*(behind|update|hand_on))", UPDATE),
    (r"quantize/(kernels|kmeans_kernels)", FITS),
    (r"quantize/\w*_kernels", SPAN),
    (r"quantize/\w*filter", FILTER),
    (r"quantize/\w*(spread|own|adaptive)", FITS),
    (r"quantize/\w*:\w*(centred|_least_cost|_saving|finish|cost|loss)", PRODUCTS),
    (r"quantize/(feedback|trellis|scalar|\w*span)", SPAN),
    (r"quantize/|codec/order\w*:look_up|codec/scales", FITS),
    (r"codec/|bundle/|files|atomic|resume/", CODING),
    (r"theory/|compression/(limits|rate_model|bound)", LIMITS),
    (r"importance/(factored|forms|moments):(times|cost|loss|row_costs)", PRODUCTS),
    (r"importance/factored", LIMITS),
    (r"compression/target_correction:(shift|moves|_?solved|_trusted|target|_factor|_damped)", TARGETS),
    (r"importance/(squares|shifted_products|curv)", SINGLE),
    (r"importance/(factors|input_products|exact_sum|moments|blocks)|distortion/probe", SUMS),
    (r"compression/(gram_panels|kfac_statistics|activation_moments|statistics_correction)", SUMS),
    (r"compression/layer_stages:(_compared|_moments|input_moments|\w*(gram|sum)\w*)", SUMS),
    (r"compression/target_correction:(compare_inputs|sampled|\w*(gram|sum)\w*)", SUMS),
    (r"compression/(contract|moved_tensors)", CHECKS),
    (r"models/|importance/|compression/|distortion/|evaluation|text/|batch_statistics", PASSES),
)
"""Patterns of `module:function` of the library and their stages, the first one that fits counts."""

SHARED = re.compile(
    r"reconstruct|processes|compiled|records|reading|progress|results|models/uses|quantize/prepared|"
    r"compression/(api|encoder|layerwise)"
)
"""Modules whose time belongs to their callers."""

COMPILED = CPUDispatcher.__mro__[-2]
"""The class in C whose objects are compiled functions."""

Row = dict[str, Any]


class Inline(concurrent.futures.Executor):
    """A pool that does its work at once, in the thread that asks."""

    def __init__(self, *given: Any, **named: Any) -> None:
        """Take what a pool takes."""

    def submit(self, work: Callable[..., Any], /, *given: Any, **named: Any) -> concurrent.futures.Future[Any]:
        """Do the work; an error comes at once as well."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        future.set_result(work(*given, **named))
        return future

    def map(self, work: Callable[..., Any], *items: Iterable[Any], **_: Any) -> Iterator[Any]:
        return map(work, *items)


def stage_of(names: Iterable[str]) -> str:
    """The stage of a stack of `module:function` of the library, the innermost first."""
    for name in names:
        if SHARED.match(name):
            continue
        for pattern, stage in STAGES:
            if re.match(pattern, name):
                return stage
    return OTHER


def _call(kernel: Any, *given: Any, **named: Any) -> Any:
    """Call a compiled function with a frame of its own."""
    return COMPILED.__call__(kernel, *given, **named)


class Sampler:
    """Charges CPU seconds to stacks of functions of the library.

    Args:
        root: folder of the library.
    """

    def __init__(self, root: Path) -> None:
        self.root = f"{root}/"
        self.seconds: Counter[tuple[str, ...]] = Counter()
        self.last = time.process_time()

    def see(self, _: int, frame: FrameType | None) -> None:
        """Charge what passed since the last sample."""
        now = time.process_time()
        self.seconds[tuple(islice(self._stack(frame), DEPTH))] += now - self.last
        self.last = now

    def _stack(self, frame: FrameType | None) -> Iterator[str]:
        while frame is not None:
            code = frame.f_code
            if code is _call.__code__:
                kernel = frame.f_locals["kernel"].py_func
                yield f"{kernel.__module__.removeprefix('waterfill.').replace('.', '/')}:{kernel.__name__}"
            elif code.co_filename.startswith(self.root):
                yield f"{code.co_filename.removeprefix(self.root).removesuffix('.py')}:{code.co_name}"
            frame = frame.f_back

    @contextmanager
    def running(self) -> Iterator[None]:
        """Sample while the block runs."""
        self.last = time.process_time()
        signal.signal(signal.SIGPROF, self.see)
        signal.setitimer(signal.ITIMER_PROF, EVERY, EVERY)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    def rows(self) -> list[Row]:
        """Stacks and their seconds, the dearest first."""
        return [{"stack": stack, "seconds": round(spent, 4)} for stack, spent in self.seconds.most_common()]


def by_stage(rows: Sequence[Row]) -> dict[str, float]:
    """Seconds of all stages, of the stacks of a profile."""
    found = dict.fromkeys([*dict.fromkeys(stage for _, stage in STAGES), OTHER], 0.0)
    for row in rows:
        found[stage_of(row["stack"])] += row["seconds"]
    return found


def main() -> None:
    key, sources, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    concurrent.futures.ThreadPoolExecutor = Inline  # type: ignore[misc,assignment]
    import walk_cases  # which imports the library, after the pools were replaced
    import waterfill

    case = walk_cases.CASES[key]
    case.source.prepare(sources)
    data = None if case.calibration is None else list(case.calibration(sources))
    ready = case.source.load(sources)
    walk_cases.warm_up()
    CPUDispatcher.__call__ = _call
    sampler = Sampler(Path(waterfill.__file__).parent)
    out.mkdir(parents=True, exist_ok=True)
    with sampler.running():
        start = time.process_time()
        result = case.source.compress(ready, data, out, case.options)
        total = time.process_time() - start
    print(json.dumps({"stacks": sampler.rows(), "seconds": total, "rate": result.rate}))


if __name__ == "__main__":
    main()
