"""One thread for the libraries underneath: sums that threads share are rounded in another order for each number.

Work is shared between cores tensor by tensor instead, whose results do not depend on that.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from threadpoolctl import threadpool_limits


class _Callers(threading.local):
    """How often the calling thread is inside."""

    depth = 0


_LOCK = threading.Lock()
_MINE = _Callers()
_inside, _threads = 0, 1
_limits = ExitStack()


@contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch and linear algebra work in one thread while any caller is inside.

    Products with few results of long sums, Cholesky decompositions and some gradients differ in their last bits between
    one and two threads, and with them the bytes of a file. On a busy machine, threads that wait for each other burn
    time.
    """
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _inside, _threads  # the number of threads belongs to the process
    with _LOCK:
        if not _inside:
            _threads = torch.get_num_threads()
            _limits.enter_context(threadpool_limits(1, user_api="blas"))
        _inside += 1
        _MINE.depth += 1
        torch.set_num_threads(1)


def _leave() -> None:
    global _inside
    with _LOCK:
        _inside -= 1
        _MINE.depth -= 1
        if not _MINE.depth:  # PyTorch has a number for each thread of Python
            torch.set_num_threads(_threads)
        if not _inside:
            _limits.close()
