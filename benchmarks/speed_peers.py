"""CPU microseconds a weight on all-MiniLM-L6-v2 beside NNCodec and GPTQ: `python speed_peers.py WAY`, then JSON.

pip install --no-deps --target FOLDER nncodec==2.1.3; $WATERFILL_PACKAGES says which folder.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import nn

import minilm
import package_networks
import waterfill
from hf_baselines import Small, gptq
from hf_grid import Grid
from hf_tasks import MINILM, filled
from peer_codecs import NnCodec
from walk_cases import CASES

Row = dict[str, Any]

QP, BITS = -26, 3
"""Settings near a rate of 3."""


def nncodec(_: Path) -> Row:
    """Encode the file without data."""
    source = minilm.folder()
    assert source is not None
    state = {name: each for name, each in load_file(source / "model.safetensors").items() if each.dtype == np.float32}
    codec = NnCodec(QP, 1.0)
    start = time.process_time()
    data = codec.encode(state)
    seconds = time.process_time() - start
    copy = minilm.pretrained()
    copy.load_state_dict({name: torch.from_numpy(each) for name, each in codec.decode(data).items()}, strict=False)
    return _row(seconds, len(data), copy, minilm.pretrained(), "minilm-no-data")


def gptq_run(folder: Path) -> Row:
    """Calibrate on 128 sentences and quantize all matrices."""
    model = MINILM.load(folder)
    data = list(MINILM.calibration(folder))
    start = time.process_time()
    small: Small = gptq(model, data, Grid(BITS, True), act_order=True)
    seconds = time.process_time() - start
    copy = filled(MINILM.load(folder), small.tensors)
    return _row(seconds, small.size_bytes(MINILM.unused), copy, model, "minilm")


WAYS: dict[str, Callable[[Path], Row]] = {"nncodec": nncodec, "gptq": gptq_run}


def _row(seconds: float, size: int, copy: nn.Module, model: nn.Module, case: str) -> Row:
    test: Any = CASES[case].test
    batches: Iterable[Any] = list(test(Path()))
    found = waterfill.evaluate(copy.eval(), batches, reference=model, output="values")
    return {"call_cpu": seconds, "bytes": size, "loss": found.relative_squared_error}


def main() -> None:
    torch.set_num_threads(1)
    packages = package_networks.folder()
    if packages is not None:
        sys.path.append(str(packages))
    way, sources = sys.argv[1:]
    print(json.dumps(WAYS[way](Path(sources) / "minilm")))


if __name__ == "__main__":
    main()
