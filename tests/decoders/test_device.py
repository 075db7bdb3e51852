"""The reader in C on an emulated Cortex-M4: the bits of the package."""

import re
import shutil
import subprocess
import zlib
from pathlib import Path

import pytest
import torch

import waterfill
from decoders.c_reader import SOURCES
from waterfill.io.file import ArrayFile

NEEDED = ("make", "cc", "arm-none-eabi-gcc", "qemu-system-arm")
LACKING = [name for name in NEEDED if shutil.which(name) is None]
GOLDEN = Path(__file__).parents[1] / "golden"


def small_net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Linear(8, 9))


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    return tmp_path_factory.mktemp("device")


@pytest.mark.skipif(bool(LACKING), reason=f"there is no {' or '.join(LACKING)}")
@pytest.mark.parametrize(
    "name",
    [
        "a small net",
        "plain.wf",
        "plain_tables.wf",
        "plain_lanes.wf",
        "paths.wf",
        "lanes_down.wf",
        "cosines.wf",
        "adaptive.wf",
    ],
)
def test_tensors_have_the_bits_of_the_package(build, tmp_path, name):
    path = GOLDEN / name
    if not path.exists():
        path = tmp_path / "net.wf"
        waterfill.compress(small_net(), rate=4).save(path)
    plain = "1" if name.startswith("plain") else ""
    line = [
        "make",
        "-C",
        SOURCES / "device",
        f"BUILD={build / f'plain{plain}'}",
        f"MODEL={path}",
        f"PLAIN={plain}",
        "run",
    ]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    found = re.findall(r"^(\S+) (\d+) (\d+)$", done.stdout, re.MULTILINE)
    with ArrayFile(path) as file:
        expected = [(name, values.array.size, zlib.crc32(values.elements())) for name, values in file.tensors()]
    assert [(name, int(values), int(crc)) for name, values, crc in found] == expected
    assert int(re.search(r"a value: (\d+)", done.stdout)[1]) > 10
