"""Two processes make of a module the file of one, both return it, and what goes wrong in one ends both."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import waterfill
from waterfill.errors import WaterfillError
from waterfill.importance import gradient, hessian, kl, kronecker
from waterfill.quantize import KMeans

TESTS = Path(__file__).parents[1]
FAST = {"rate": 4, "effort": "fast"}


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 5)).eval()


def conv():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 9, 3), nn.BatchNorm2d(9), nn.ReLU(), nn.Conv2d(9, 12, 3), nn.BatchNorm2d(12), nn.Tanh()]
    made = nn.Sequential(*layers, nn.Flatten(), nn.Linear(48, 5)).eval()
    for layer in (made[1], made[4]):
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
    return made


def batches(count=5):
    draw = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 1, 6, 6, generator=draw), torch.randint(0, 5, (size,), generator=draw))
        for size in (8, 5, 8, 7, 8)[:count]
    ]


def nearness(model, data):
    """A metric of one's own: minus the mean output."""
    return -float(torch.cat([model(x) for x, _ in data]).abs().mean())


CASES = {
    "logits, curves": (mlp, {"rate": 4}),
    "norms, curves, tune": (conv, {"rate": 4, "tune": True}),
    "values": (mlp, FAST | {"output": "values"}),
    "metric": (mlp, {"tolerance": 0.01, "metric": nearness, "effort": "fast"}),
    "accuracy": (conv, {"tolerance": 0.05, "effort": "fast"}),
    "distortion": (conv, {"distortion": 0.01, "effort": "fast"}),
    "fixed": (mlp, {"quantizers": [KMeans(8)], "importance": kl()}),
    "curvature": (conv, FAST | {"importance": hessian(mu=10)}),
    "labels": (mlp, FAST | {"importance": gradient()}),
    "without data": (mlp, {"rate": 4}),
}


def compressed(name, **options):
    make, given = CASES[name]
    data = None if name == "without data" else batches()
    return waterfill.compress(make(), data, **given, **options)


def environment():
    paths = [str(TESTS), str(Path(__file__).parent), *sys.path]
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def torchrun(*command, processes=2):
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run([*start, *command], capture_output=True, text=True, env=environment(), timeout=600)


def by_hand(script):
    """Two processes of a script that nobody ends when the other fails: their exit codes and what they have told."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    places = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment() | places | {"RANK": str(rank)},
        )
        for rank in range(2)
    ]
    told = [process.communicate(timeout=600)[0].strip() for process in started]
    return [process.returncode for process in started], told


SCRIPT = """
import os, sys
from pathlib import Path
import test_processes_of_modules as cases
for name in cases.CASES:
    found = cases.compressed(name)
    place = Path(sys.argv[1]) / f"{name} {os.environ['RANK']}"
    found.save(place.with_suffix(".wf"))
    place.with_suffix(".json").write_text(found.to_json())
"""


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Folder of the files that two processes make, each all of them."""
    place = tmp_path_factory.mktemp("together")
    (place / "script.py").write_text(SCRIPT)
    done = torchrun(str(place / "script.py"), str(place))
    assert done.returncode == 0, done.stderr
    return place


@pytest.mark.parametrize("name", CASES)
def test_two_processes_make_the_same_file_and_result(name, together):
    alone = compressed(name)
    for rank in range(2):
        place = together / f"{name} {rank}"
        assert place.with_suffix(".wf").read_bytes() == alone.data
        assert json.loads(place.with_suffix(".json").read_text()) == json.loads(alone.to_json())
