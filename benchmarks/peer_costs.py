"""What encoding and decoding cost: seconds and memory, each in a process of its own (Linux)."""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file

import minilm
import peer_codecs
import results
import waterfill
from measure import say
from peer_codecs import NnCodec
from peer_networks import FREE, KL, NETWORKS, NNCODEC, Network
from peer_ways import Way, warm, ways

Row = dict[str, Any]
Rows = list[Row]

COSTS = "Time and memory"
SPEED = "Speed on all-MiniLM-L6-v2"
AIM = 0.01
"""Nats; of each codec the setting is taken whose KL divergence is nearest to it."""

QP, RUNS = -26, 2
CORES = (1, 2)


def measure(network: Network, codecs: Sequence[str]) -> None:
    """One row for each codec, at a setting of its sweep; into the JSON file."""
    swept = results.read("peers")[network.title]
    for codec in codecs:
        own = [row for row in swept if row["codec"] == codec]
        if not own:
            continue
        setting = min(own, key=lambda row: abs(math.log(max(row[KL], 1e-9) / AIM)))["setting"]
        row = {"network": network.title, "codec": codec, "setting": setting, **_both(network.key, codec, setting)}
        say(f"costs {row}")
        _keep(COSTS, [row], ("network", "codec"))


def _keep(title: str, rows: Rows, keys: Sequence[str]) -> None:
    """Add rows to a table, in place of those that are the same in the columns `keys`."""
    new = {tuple(row[key] for key in keys) for row in rows}
    with results.alone("peers") as known:
        kept = [row for row in known.get(title, []) if tuple(row[key] for key in keys) not in new]
        results.keep("peers", known | {title: [*kept, *rows]})


def _both(key: str, codec: str, setting: str) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        encoding = _apart(_encode, key, codec, setting, path)
        decoding = _apart(_decode, key, codec, setting, path)
        return {"bytes": path.stat().st_size, **_named("encode", encoding), **_named("decode", decoding)}


def _named(what: str, costs: Mapping[str, float]) -> Row:
    return {f"{what}, {name}": round(value, 3 if name.endswith(" s") else 1) for name, value in costs.items()}


def _encode(key: str, codec: str, setting: str, path: Path) -> Row:
    way, data = _way(key, codec, setting), []
    costs = metered(lambda: data.append(way.encode()))
    path.write_bytes(data[0])
    return costs


def _decode(key: str, codec: str, setting: str, path: Path) -> Row:
    way, data = _way(key, codec, setting), path.read_bytes()
    return metered(lambda: way.decode(data))


def _way(key: str, codec: str, setting: str) -> Way:
    network = next(each for each in NETWORKS if each.key == key)
    warm(codec)
    model = network.original()
    if setting.startswith("rate "):
        network = network.at_rates([float(setting.removeprefix("rate "))])
    return next(way for way in ways(network, model, [codec]) if way.setting == setting)


# A process for each


def _apart(work: Callable[..., Row], *args: Any, cores: int = 1) -> Row:
    """Run in a new process on so many cores, whose memory nothing else has touched."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = str(cores)
    spawn = multiprocessing.get_context("spawn")
    receive, send = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_send, args=(send, cores, work, args))
    process.start()
    send.close()
    row: Row = receive.recv()
    process.join()
    return row


def _send(pipe: Any, cores: int, work: Callable[..., Row], args: Sequence[Any]) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-cores:])
    torch.set_num_threads(cores)
    pipe.send(work(*args))


def metered(work: Callable[[], object]) -> Row:
    """Wall and CPU seconds, and how far resident memory rises above what it was before, MB."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, wall, cpu = _memory("VmRSS"), time.perf_counter(), time.process_time()
    work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"wall s": wall, "CPU s": cpu, "peak MB": max(0.0, _memory("VmHWM") - before)}


def _memory(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{name}:"))


# A network of 22.7 million values


def minilm_speed() -> None:
    """NNCodec and waterfill without data by turns, at the same size; into the JSON file."""
    folder = minilm.folder()
    if folder is None or peer_codecs.nncodec() is None:
        say(f"{SPEED}: left out; {minilm.INSTALL}; {peer_codecs.INSTALL}")
        return
    source = folder / "model.safetensors"
    for cores in CORES:
        found: dict[str, Rows] = {NNCODEC: [], FREE: []}
        for _ in range(RUNS):
            found[NNCODEC].append(_turn(NNCODEC, source, QP, cores))
            rate = found[NNCODEC][0]["bit/value"]
            found[FREE].append(_turn(FREE, source, rate, cores))
        _keep(SPEED, [_best(codec, cores, rows) for codec, rows in found.items()], ("codec", "cores"))


def _turn(codec: str, source: Path, setting: float, cores: int) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        encoding = _apart(_encode_minilm, codec, source, setting, path, cores=cores)
        decoding = _apart(_decode_minilm, codec, source, path, cores=cores)
    row = {**_named("encode", encoding["costs"]), **_named("decode", decoding["costs"])}
    row = {"setting": encoding["setting"], "bytes": encoding["bytes"], "bit/value": encoding["rate"], **row}
    row |= {"weight error, dB": decoding["error"]}
    say(f"minilm {codec} {cores} {row}")
    return row


def _best(codec: str, cores: int, rows: Rows) -> Row:
    """Least seconds and most memory of several runs."""
    least = {name: min(row[name] for row in rows) for name in rows[0] if name.endswith(" s")}
    most = {name: max(row[name] for row in rows) for name in rows[0] if name.endswith(" MB")}
    return {"codec": codec, "cores": cores, **rows[0], **least, **most}


def _encode_minilm(codec: str, source: Path, setting: float, path: Path) -> Row:
    warm(codec)
    state = {name: array for name, array in load_file(source).items() if array.dtype == np.float32}
    data: list[bytes] = []
    if codec == NNCODEC:
        peer = NnCodec(int(setting), 1.0)
        name, costs = peer.setting, metered(lambda: data.append(peer.encode(state)))
    else:
        name = f"rate {setting:.3f}"
        costs = metered(lambda: data.append(bytes(waterfill.compress(source, rate=setting).data)))
    path.write_bytes(data[0])
    values = sum(array.size for array in state.values())
    return {"setting": name, "bytes": len(data[0]), "rate": round(8 * len(data[0]) / values, 3), "costs": costs}


def _decode_minilm(codec: str, source: Path, path: Path) -> Row:
    warm(codec)
    found: list[Any] = []
    if codec == NNCODEC:
        data = path.read_bytes()
        costs = metered(lambda: found.append(NnCodec(QP, 1.0).decode(data)))
    else:
        costs = metered(lambda: found.append(waterfill.decompress(path)))
    error = power = 0.0
    for name, array in load_file(source).items():
        if array.dtype == np.float32:
            error += float(np.square(np.asarray(found[0][name]).reshape(array.shape) - array, dtype=np.float64).sum())
            power += float(np.square(array, dtype=np.float64).sum())
    return {"costs": costs, "error": round(10 * math.log10(error / power), 2)}
