"""Two processes make the file of one, and one that is left alone says so."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import waterfill
from families import batches, maker

HELP = [str(Path(__file__).parent), *sys.path]
RUN = f"""
import os, sys
sys.path[:0] = {[HELP[0]]!r}
import waterfill
from families import batches
from waterfill.errors import WaterfillError
"""


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    return maker(tmp_path_factory.mktemp("families"))


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, HELP))}


def test_two_processes_make_the_same_files(directories, tmp_path):
    names = ("llama", "mixtral")
    script = tmp_path / "run.py"
    script.write_text(
        RUN + "for name, source in zip(sys.argv[2::2], sys.argv[3::2]):\n"
        "    result = waterfill.compress_directory(source, sys.argv[1] + '/' + name, batches(5), rate=4)\n"
        "    if os.environ['RANK'] == '0': print(name, repr(result.distortion), result.size_bytes)\n"
    )
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    given = [each for name in names for each in (name, str(directories(name)))]
    done = subprocess.run(
        [*start, str(tmp_path), *given], capture_output=True, text=True, env=environment(), timeout=600
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith(names)]
    assert [line[0] for line in lines] == list(names), done.stdout
    for name, distortion, size in lines:
        alone = waterfill.compress_directory(directories(name), tmp_path / f"{name}-alone", batches(5), rate=4)
        assert (float(distortion), int(size)) == (alone.distortion, alone.size_bytes)
        one, two = (tmp_path / each / "waterfill.safetensors" for each in (f"{name}-alone", name))
        assert one.read_bytes() == two.read_bytes()
        assert (one.parent / "config.json").read_bytes() == (two.parent / "config.json").read_bytes()


def test_a_process_that_is_gone_ends_the_other_with_a_clear_error(directories, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(
        RUN + "from waterfill.processes import Processes\n"
        "all_reduce = Processes.all_reduce\n"
        "def gone(self, tensors, seen=[]):\n"
        "    seen.append(1)\n"
        "    if self.rank == 1 and len(seen) == 3: os._exit(7)\n"
        "    return all_reduce(self, tensors)\n"
        "Processes.all_reduce = gone\n"
        "try: waterfill.compress_directory(sys.argv[1], sys.argv[2], batches(), rate=4)\n"
        "except WaterfillError as error: print(error); sys.exit(3)\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    out = tmp_path / "place" / "out"
    out.parent.mkdir()
    started = [
        subprocess.Popen(
            [sys.executable, str(script), str(directories("llama")), str(out)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment() | {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
        )
        for rank in range(2)
    ]
    (told, wrong), _ = (process.communicate(timeout=600) for process in started)
    assert [process.returncode for process in started] == [3, 7], wrong
    assert "A process of this compression is gone" in told
    assert "Start it again with the same number of processes" in told
    assert len(told.strip().splitlines()) == 1
    assert not list(out.parent.iterdir())
