"""Estimates of memory of modules."""

import pytest
import torch
from torch import nn

import waterfill
from waterfill.compression.memory import KERNEL_BYTES, held_bytes, model_memory
from waterfill.errors import WaterfillError
from waterfill.models import torch_module


def test_a_model_that_takes_more_memory_is_refused_at_once():
    with pytest.raises(WaterfillError, match=r"Compressing this model takes about .* GiB .* at most 0\.00 GiB"):
        waterfill.compress(nn.Linear(8, 8), rate=4, memory=1000)


def test_data_and_wide_layers_take_more():
    narrow, wide = (torch_module.inventory(nn.Linear(inputs, 4)) for inputs in (16, 512))
    assert model_memory(narrow, None).products == 0 < model_memory(narrow, 0).products
    assert model_memory(narrow, 0).products < model_memory(wide, 0).products
    assert model_memory(narrow, 0).activations + 1000 == model_memory(narrow, 1000).activations


def test_what_a_process_has_counts():
    before = held_bytes()
    if not before:
        pytest.skip("the system does not tell")
    ballast = torch.zeros(1 << 28)  # 1 GiB, above what a program has
    assert held_bytes() >= before + ballast.nbytes
    assert model_memory(torch_module.inventory(nn.Linear(4, 4)), None).program >= ballast.nbytes + KERNEL_BYTES
