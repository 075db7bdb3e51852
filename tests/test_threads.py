"""The number of threads changes neither bytes nor what the caller has set."""

import threading

import pytest
import torch
from threadpoolctl import threadpool_info
from torch import nn

import waterfill
from waterfill.importance import kronecker
from waterfill.threads import one_thread


@pytest.fixture(autouse=True)
def threads():
    torch.manual_seed(0)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def blas_threads():
    return {each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"}


class Spy:
    """An importance that notes how many threads there are."""

    name = "kronecker"

    def __init__(self):
        self.seen = []

    def estimate(self, *given, **named):
        self.seen.append((torch.get_num_threads(), blas_threads()))
        return kronecker().estimate(*given, **named)


def test_files_have_the_same_bytes_for_any_number_of_threads():
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(16 * 64, 250))
    data = [torch.randn(64, 3, 12, 12) for _ in range(4)]
    files = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        spy = Spy()
        files.append(waterfill.compress(model, data, output="values", rate=2, effort="fast", importance=spy).data)
        assert spy.seen == [(1, {1})]
        assert torch.get_num_threads() == count
    assert files[0] == files[1] == files[2]


def test_threads_are_given_back_when_the_last_caller_leaves():
    torch.set_num_threads(3)
    inside, leave = threading.Event(), threading.Event()

    def other():
        with one_thread():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with one_thread():
        thread.start()
        inside.wait(10)
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3 and blas_threads() == {1}  # the other one works on
    leave.set()
    thread.join()
    with pytest.raises(RuntimeError), one_thread():
        raise RuntimeError
    assert torch.get_num_threads() == 3
