"""Two processes make of a module the file of one, both return it, and what goes wrong in one ends both."""

import json
import os
import socket
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from torch import nn

import waterfill
from waterfill.importance import gradient, hessian, kl
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


def by_hand(*words):
    """Two processes that nobody ends when the other fails: the exit code, output and errors of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    places = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        subprocess.Popen(
            [sys.executable, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment() | places | {"RANK": str(rank)},
        )
        for rank in range(2)
    ]
    told = [process.communicate(timeout=600) for process in started]
    return [(process.returncode, out.strip(), err) for process, (out, err) in zip(started, told, strict=True)]


SCRIPT = """
import os, sys
from pathlib import Path
import test_processes_of_modules as cases
for name in cases.CASES:
    found = cases.compressed(name)
    place = Path(sys.argv[1]) / f"{name} {os.environ['RANK']}"
    found.save(place.with_suffix(".wf"))
    place.with_suffix(".json").write_text(found.to_json())
found = cases.compressed("logits, curves", tune=True, work=Path(sys.argv[1]) / "work")
found.save(Path(sys.argv[1]) / f"work {os.environ['RANK']}.wf")
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


@pytest.fixture(scope="module")
def failures():
    """How two processes end in which something goes wrong again and again, and what they told."""
    script = """
import os, sys
import torch, waterfill
from torch import nn
import test_processes_of_modules as cases
from waterfill.errors import WaterfillError
from waterfill.importance.state import Seen
from waterfill.quantize import KMeans
def told(*given, **options):
    try: print("none", waterfill.compress(*given, **options))
    except WaterfillError as error: print(error)
seen = Seen.seen
def fails(self, batch, index=None):
    if index == 0: raise WaterfillError("Batch 3 does not fit.")
    return seen(self, batch, index)
Seen.seen = fails
told(cases.mlp(), cases.batches(), rate=4, effort="fast")
Seen.seen = seen
class Refuses(KMeans):
    def quantize(self, weight, form, level):
        if weight.name == "3.weight": raise WaterfillError("refused")
        return super().quantize(weight, form, level)
told(cases.mlp(), cases.batches(), quantizers=[Refuses(8)])
told(cases.mlp(), cases.batches(), rate=4, memory=10**6)
torch.manual_seed(int(os.environ["RANK"]))
told(nn.Linear(36, 12), rate=4)
class Data(list):
    passes = 0
    def __iter__(self):
        Data.passes += 1
        if os.environ["RANK"] == "1" and Data.passes == 1: raise OSError("disk")
        return super().__iter__()
try: waterfill.compress(cases.mlp(), Data(cases.batches()), rate=4, effort="fast")
except (WaterfillError, OSError) as error: print(error); sys.exit(3)
"""
    found = by_hand("-c", script)
    return [code for code, _, _ in found], [out.splitlines() for _, out, _ in found]


def test_an_error_in_one_process_is_told_in_both(failures):
    _, (first, second) = failures
    assert first[:4] == second[:4]
    batch, quantizer, memory, weights = first[:4]
    assert batch == "Batch 3 does not fit."
    assert quantizer == "tensor '3.weight' (5, 12): refused"
    assert memory.startswith("Compressing this model takes about")
    other = "Process 1 has another model or other data than the first: weights of weight, bias differ."
    assert weights.startswith(other)


def test_data_that_fail_in_one_process_end_the_other(failures):
    codes, (first, second) = failures
    assert codes == [3, 3]
    assert "A process of this compression is gone" in "\n".join(first[4:])
    assert "failed at batch 0: OSError: disk" in "\n".join(second[4:])


def test_processes_go_on_in_their_work_folders_wherever_they_were(together):
    work = together / "work"
    script = f"""
import zlib
import test_processes_of_modules as cases
print(zlib.crc32(cases.compressed("logits, curves", tune=True, work={str(work)!r}).data))
"""
    for kept in sorted((work / "process-1-of-2").glob("*.result"))[::2]:
        kept.unlink()
    first, second = (str(zlib.crc32((together / f"work {rank}.wf").read_bytes())) for rank in range(2))
    assert [found[:2] for found in by_hand("-c", script)] == [(0, first), (0, second)]
    assert first == second


def test_the_command_writes_in_the_first_process_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = "compress test_processes_of_modules:mlp -o out.wf --data test_processes_of_modules:batches --effort fast"
    options = ["--json", "out.json", "--memory", "30GB", "--work", "work"]
    (code, shown, err), other = by_hand("-m", "waterfill", *command.split(), *options)
    assert (code, other[0]) == (0, 0), err + other[2]
    assert (shown + other[1]).count("\n3.weight ") == 1
    assert (tmp_path / "out.wf").read_bytes() == waterfill.compress(mlp(), batches(), effort="fast").data
    assert json.loads((tmp_path / "out.json").read_text())["tensors"]
    assert sorted(each.name for each in (tmp_path / "work").iterdir()) == ["process-0-of-2", "process-1-of-2"]
    told = by_hand("-m", "waterfill", *command.split(), "--force", "--memory", "1MB")
    assert [code for code, _, _ in told] == [1, 1]
    errors = [err for _, _, err in told if "Compressing this model takes" in err]
    assert {err.partition(":")[0] for err in errors} <= {"waterfill", "waterfill (process 1)"}
    assert errors
    assert not any(out for _, out, _ in told)
