"""Devices by name; whole compressions on one that is none, in a process of their own."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import waterfill
from waterfill.errors import UsageError
from waterfill.models.placement import device_name, has_room, model_on

CASES = Path(__file__).with_name("device_cases.py")


@pytest.mark.parametrize("device", ["cuda:99", "nothing", "mps", torch.device("xpu:7")])
def test_a_device_that_is_not_there_is_named(device):
    with pytest.raises(UsageError, match=f"Device '{device}' .*expected one of cpu.*leave device out"):
        device_name(device)


def test_a_device_without_values_is_refused():
    with pytest.raises(UsageError, match="Device 'meta' holds no values; expected one of cpu"):
        waterfill.compress(torch.nn.Linear(3, 4), device="meta")


def test_no_device_is_where_the_model_is():
    model = torch.nn.Linear(3, 4)
    assert device_name(None) is None
    assert model_on(model, None) is model
    assert model_on(model, device_name("cpu")) is model
    assert has_room(torch.device("cpu"), 1 << 60)


def test_everything_runs_on_a_device_and_gives_what_the_processor_gives():
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", str(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=CASES.parents[1], timeout=1800)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
