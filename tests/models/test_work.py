"""Work of models, counted by hand."""

import inspect
import sys

import pytest
import torch
from torch import nn

from waterfill.models.work import MULTIPLICATIONS, WorkBudget, WorkCounter, sample_work


def test_values_and_multiplications_of_a_sample_are_counted():
    model = nn.Sequential(nn.Conv1d(3, 4, 2, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 7, 5, bias=False))
    convolved, out = 4 * 7, 5
    multiplications = convolved * 3 * 2 + out * 4 * 7
    copied = 3 * 8  # of the inputs
    expected = copied + 2 * convolved + out + multiplications / MULTIPLICATIONS
    for samples in (1, 2, 9):
        assert sample_work(model, torch.randn(samples, 3, 8)) == pytest.approx(expected)


def test_a_budget_is_for_so_many_samples():
    model = nn.Linear(10, 20)
    assert WorkBudget(7.5 * 30, 0.0).samples(model, 30) == 7
    assert WorkBudget(1.0, 2.5 * 30 / 220).samples(model, 30) == 2
    assert WorkBudget(1.0, 0.0).samples(model, 30) == 1


def test_a_model_that_cannot_be_watched_has_no_work():
    class Unwatched(nn.Module):
        def forward(self, x):
            assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
            return 2 * x

    assert sample_work(Unwatched(), torch.randn(3, 2)) == 1


def test_the_compiler_of_pytorch_is_not_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch._dynamo", None)
    monkeypatch.delattr(inspect.unwrap(WorkCounter.__torch_dispatch__), "__dynamo_disable", raising=False)
    assert sample_work(nn.Linear(3, 4), torch.randn(2, 3)) > 1
