"""Estimates of memory of modules against what the system says was used."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import waterfill
from waterfill.compression.memory import KERNEL_BYTES, held_bytes, model_memory
from waterfill.errors import WaterfillError
from waterfill.models import torch_module

SCRIPT = """
import resource, sys
import torch, waterfill
from torch import nn
from waterfill.compression import calibration, memory
def estimated(*given):
    found.append(memory.model_memory(*given).total)
    return memory.model_memory(*given)
found, calibration.model_memory = [], estimated
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
data = [(torch.randn(64, 1024), torch.randint(0, 10, (64,))) for _ in range(4)] if sys.argv[1] == "data" else None
waterfill.compress(model, data, rate=3, effort="fast", memory=10**11)
print(found[0] / (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems count in other units")
@pytest.mark.parametrize("data", ["data", "none"])
def test_the_peak_is_estimated_and_not_too_low(data):
    paths = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, data],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert 1 <= float(done.stdout) <= 1.6


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
