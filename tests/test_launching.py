"""Kernels of devices: where they run, and what is said where they cannot."""

import threading
import time
from types import SimpleNamespace

import pytest
import torch

from waterfill.devices import has_kernels, launch, side_by_side
from waterfill.errors import WaterfillError


class Kernel:
    """Calls a function with what it is launched with."""

    def __init__(self, work):
        self.work = work

    def __getitem__(self, grid):
        return lambda *args, **constants: self.work(grid, args, constants)


def refuse(*_):
    raise RuntimeError("Failed to find C compiler.\nSet CC")


def test_only_gpus_of_cuda_have_kernels():
    assert not has_kernels(None) and not has_kernels("cpu") and not has_kernels("meta")


def test_kernels_are_launched_without_fused_products():
    launched = []
    argument = torch.zeros(3)
    for _ in range(2):
        launch(Kernel(lambda *given: launched.append(given)), (2, 3), argument, BLOCK=4)
    assert launched == 2 * [((2, 3), (argument,), {"BLOCK": 4, "enable_fp_fusion": False})]


def test_what_is_missing_for_a_gpu_is_named():
    there = SimpleNamespace(device=torch.device("cuda", 0))
    with pytest.raises(WaterfillError, match=r"'cuda:0' cannot be compiled \(Failed to find C compiler\.\); .*gcc"):
        launch(Kernel(refuse), (1,), there)
    with pytest.raises(RuntimeError, match="Set CC"):
        launch(Kernel(refuse), (1,), torch.zeros(1))


def test_no_memory_on_a_device_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device", lambda _: side_by_side(torch.device("cpu")))
    monkeypatch.setattr(torch.cuda, "stream", lambda _: side_by_side(torch.device("cpu")))
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: None)
    with (
        pytest.raises(WaterfillError, match="'cuda:1' has no memory left"),
        side_by_side(torch.device("cuda", 1)),
    ):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


def test_a_kernel_is_compiled_by_one_thread_and_launched_by_all():
    running, launched, lock = [], [], threading.Lock()

    def run(grid, args, constants):
        with lock:
            running.append(len(launched))
        if len(running) == 1:
            time.sleep(0.05)  # compiles
        launched.append((grid, len(args), constants["WIDE"], constants["enable_fp_fusion"]))

    kernel, one = Kernel(run), torch.zeros(1)
    threads = [threading.Thread(target=lambda: launch(kernel, (3,), one, 7, WIDE=True)) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert launched == [((3,), 2, True, False)] * 8
    assert min(running[1:]) > 0  # none began before the first one was done
