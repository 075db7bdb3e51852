"""Run a campaign in several processes, which may hang or crash: `PYTHONPATH=tests python -m fuzz --mutants 1000000`."""

import argparse
import multiprocessing
import os
import tempfile
import time
import warnings
from multiprocessing.connection import wait
from pathlib import Path

from fuzz.campaign import KINDS, Campaign, Tally

CONTEXT = multiprocessing.get_context("spawn")
REPORT_EVERY = 50
HANG_SECONDS = 120.0
POLL_SECONDS = 1.0
START_SECONDS = 1200.0
"""With bounds checks all kernels are compiled first."""


def work(connection, seed, keep, numbers):
    """Examine mutants; before each its number is sent, and now and then what was found."""
    warnings.simplefilter("error")
    with Campaign(seed, keep) as campaign:
        tally = Tally()
        for number in numbers:
            connection.send(number)
            tally.add(campaign.run(number))
            if tally.total == REPORT_EVERY:
                connection.send(tally)
                tally = Tally()
        connection.send(tally)
    connection.send(None)


class Worker:
    """A process that examines every `step`-th mutant, and is started anew behind one that it does not survive."""

    def __init__(self, seed, keep, numbers):
        self._options, self._numbers, self.tally, self.done = (seed, keep), numbers, Tally(), False
        self._start()

    def _start(self):
        self.connection, other = CONTEXT.Pipe(duplex=False)
        self._process = CONTEXT.Process(target=work, args=(other, *self._options, self._numbers), daemon=True)
        self._process.start()
        other.close()
        self._current, self._since = None, time.monotonic()

    def receive(self):
        """Take what the process has sent."""
        try:
            message = self.connection.recv()
        except EOFError:
            self._process.join()
            self._gave_up(f"crash: the process ended with {self._process.exitcode}")
            return
        if isinstance(message, int):
            self._current, self._since = message, time.monotonic()
        elif message is None:
            self.done = True
            self._process.join()
        else:
            self.tally.add(message)
            self._numbers = self._numbers[message.total :]

    def check(self):
        """End a process that hangs."""
        limit = START_SECONDS if self._current is None else HANG_SECONDS
        if not self.done and time.monotonic() - self._since > limit:
            self._process.kill()
            self._process.join()
            self._gave_up(f"hang: more than {limit:.0f} seconds")

    def _gave_up(self, text):
        """Note a finding, and go on with all that has not been reported but it."""
        if self._current is None:
            raise RuntimeError(f"A process of the campaign did not start: {text}")
        kind = KINDS[self._current % len(KINDS)]
        self.tally.add(Tally(findings=[(self._current, kind, text)]))
        self.tally.counts[kind, "finding"] += 1
        self._numbers = [number for number in self._numbers if number != self._current]
        self._start()


def run(mutants, processes, seed, keep=None, first=0, show=None):
    """Examine so many mutants; the tally does not depend on the number of processes."""
    numbers = range(first, first + mutants)
    workers = [Worker(seed, keep, numbers[rank::processes]) for rank in range(min(processes, mutants))]
    shown = time.monotonic()
    while not all(worker.done for worker in workers):
        busy = {worker.connection: worker for worker in workers if not worker.done}
        for connection in wait(list(busy), timeout=POLL_SECONDS):
            busy[connection].receive()
        for worker in workers:
            worker.check()
        if show is not None and time.monotonic() - shown > 60:
            shown = time.monotonic()
            show(sum(worker.tally.total for worker in workers), sum(len(worker.tally.findings) for worker in workers))
    whole = Tally()
    for worker in workers:
        whole.add(worker.tally)
    whole.findings.sort()
    return whole


def separate_cache():
    """With bounds checks, keep kernels apart from those without."""
    if os.environ.get("NUMBA_BOUNDSCHECK") == "1" and "NUMBA_CACHE_DIR" not in os.environ:
        os.environ["NUMBA_CACHE_DIR"] = str(Path(tempfile.gettempdir()) / f"fuzz-with-bounds-{os.getuid()}")


def main():
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--mutants", type=int, default=10_000, help="how many (%(default)s)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the campaign (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first mutant, to go on (%(default)s)")
    parser.add_argument("--json", type=Path, help="where the result goes")
    parser.add_argument("--keep", type=Path, help="a folder for the mutants of findings")
    options = parser.parse_args()
    separate_cache()
    start = time.monotonic()

    def show(done, findings):
        print(f"{done:,} mutants in {time.monotonic() - start:,.0f} s, {findings} findings", flush=True)

    tally = run(options.mutants, options.processes, options.seed, options.keep, options.first, show)
    print(tally.table())
    for number, kind, text in tally.findings[:100]:
        print(f"{number} {kind}: {text}")
    if options.json is not None:
        options.json.write_text(tally.as_json() + "\n")
    return 1 if tally.findings else 0
