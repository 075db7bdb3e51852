"""Bytes at equal output error without data: waterfill beside NNCodec and rounding by rows, on networks of many kinds.

Networks that packages carry need them in a folder of their own, see `package_networks.py`; without it, and without
nncodec, what is missing is left out. `--only` and `--codecs` measure some and keep what the others had.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

import minilm
import package_networks
import peer_codecs
import results
import waterfill
from commits import commit
from data_free_networks import NETWORKS, Network
from decoding import decoded
from measure import say
from peer_codecs import NearestZstd, NnCodec
from waterfill import importance

Row = dict[str, Any]
BEFORE, NOW, WEIGHTS, NNCODEC, NEAREST = "weight_scale", "default", "row_scale", "NNCodec", "int + zstd"
CODECS = (BEFORE, NOW, WEIGHTS, NNCODEC, NEAREST)
OURS = {BEFORE: importance.weight_scale(), NOW: None, WEIGHTS: importance.row_scale()}
ERRORS = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003)
RATES = (2.5, 3.5, 4.5, 6.0)
BITS = (3, 4, 5, 6, 7, 8)
QPS = range(-12, -56, -4)
LEAST_ERROR = 1e-4


def settings(network: Network, codec: str) -> Iterator[tuple[str, int, float]]:
    """Setting, bytes and error of every file of a codec."""
    if codec in OURS:
        yield from (own(network, codec, rate) for rate in RATES)
        return
    state = peer_codecs.folded(network.original())
    peers = [NearestZstd(bits) for bits in BITS] if codec == NEAREST else []
    for peer in peers:
        yield _peer(network, peer, state)
    for optimize in (False, True) if codec == NNCODEC else ():
        for qp in QPS:
            found = _peer(network, NnCodec(qp, 1.0, optimize=optimize), state)
            yield found
            if found[2] < LEAST_ERROR:
                break


def own(network: Network, codec: str, rate: float) -> tuple[str, int, float]:
    """Setting, bytes and error of one file of ours."""
    result = waterfill.compress(network.original(), rate=rate, importance=OURS[codec], effort="fast")
    return f"rate {rate:g}", result.size_bytes, network.error(decoded(result.data, network.original()))


def _peer(network: Network, peer: peer_codecs.Codec, state: peer_codecs.Arrays) -> tuple[str, int, float]:
    data = peer.encode(state)
    return peer.setting, len(data), network.error(peer_codecs.unfolded(peer.decode(data), network.original()))


def measured(network: Network, codec: str, save: Callable[[list[Row]], None]) -> None:
    """Measure a codec, and save what is there after each file."""
    rows = []
    for setting, size, error in settings(network, codec):
        rows.append({"codec": codec, "setting": setting, "bytes": size, "error": error, "commit": commit()})
        say(f"{network.key} {rows[-1]}")
        save(rows)


def keep(network: Network, codec: str, rows: list[Row]) -> None:
    """Into the JSON file, where other runs may write meanwhile."""
    with results.alone("data_free") as known:
        kept = [row for row in known.get(network.key, []) if row["codec"] != codec]
        results.keep("data_free", known | {network.key: [*kept, *rows]})


# Bytes at equal error


def size_at(rows: list[Row], error: float) -> float | None:
    """Bytes at an error, by the logarithm of the error over bytes; None outside of what was measured."""
    points = sorted((row["bytes"], row["error"]) for row in rows)
    if len(points) < 2:
        return None
    logs = -np.minimum.accumulate(np.log([max(found, 1e-12) for _, found in points]))
    wanted = -np.log(error)
    return float(np.interp(wanted, logs, [size for size, _ in points])) if logs[0] <= wanted <= logs[-1] else None


def best_at(rows: list[Row], codec: str, error: float) -> float | None:
    """Bytes of a codec at an error, with or without the `opt_qp` of NNCodec, whichever is less."""
    own = [row for row in rows if row["codec"] == codec]
    some = [[row for row in own if ("opt_qp" in row["setting"]) == which] for which in (False, True)]
    sizes = [size for size in (size_at(each, error) for each in some) if size is not None]
    return min(sizes, default=None)


def compared(network: Network, rows: list[Row]) -> list[Row]:
    """One row for every error at which ours and another codec were measured."""
    found = []
    for error in ERRORS:
        sizes = {codec: best_at(rows, codec, error) for codec in CODECS}
        others = [size for codec, size in sizes.items() if codec not in OURS and size is not None]
        own = sizes[NOW]
        if own is not None and others:
            cells = {codec: "-" if size is None else round(size) for codec, size in sizes.items()}
            found.append(
                {"network": network.title, "chosen on": network.chosen_on, "relative error": error}
                | cells
                | {"default / best other": round(own / min(others), 3)}
            )
    return found


TEXT = (
    "Bytes of the whole file at which the squared error of the outputs on real inputs, relative to the squares of the "
    "outputs, is the one in the table: on the straight line of the logarithm of the error over bytes between the two "
    "nearest files. Nobody had data. `default` is `compress(model, rate=...)`: prices by what errors do on random "
    "inputs, which are found by trying and moved until they fit the norms; `weight_scale` was the default before; "
    '`row_scale` is what a file of weights gets. All ours at `effort="fast"`, with 8 states as NNCodec has. NNCodec '
    "2.1.3 at `qp` -12, -16, ..., with and without `opt_qp`, the better of both; int has one step a row and 3 to 8 "
    "bits, then zstd -19. Networks that say so were looked at while prices were compared, the others "
    "only measured. The files' commits are in the JSON file."
)


def write() -> None:
    known = results.read("data_free")
    rows = [row for network in NETWORKS for row in compared(network, known.get(network.key, []))]
    by_network: dict[str, list[float]] = {}
    for row in rows:
        by_network.setdefault(row["network"], []).append(row["default / best other"])
    summary = [
        {"network": title, "median": round(statistics.median(each), 3), "largest": max(each)}
        for title, each in by_network.items()
    ]
    medians = [row["median"] for row in summary]
    text = (
        f"Bytes of the default over those of the best other. Median of the networks: {statistics.median(medians):.3f}."
    )
    _page([results.Section("In short", text, summary), results.Section("At every error", TEXT, rows)])


def _page(sections: list[results.Section]) -> None:
    known = results.read("data_free")
    text = "Trained networks of many kinds, compressed without data."
    named = [row["commit"] for rows in known.values() for row in rows if row["codec"] in OURS]
    results.write_page("data_free", "Without data", text, sections, named=named)
    results.keep("data_free", known)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    keys = [network.key for network in NETWORKS]
    parser.add_argument("--only", nargs="+", choices=keys, default=keys, metavar="NETWORK", help=", ".join(keys))
    parser.add_argument("--codecs", nargs="+", choices=CODECS, default=list(CODECS), help="the others keep their rows")
    parser.add_argument("--write", action="store_true", help="only the page, of what the JSON file has")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    for network in NETWORKS:
        if network.key in options.only and not options.write and _is_there(network):
            for codec in options.codecs:
                if codec != NNCODEC or peer_codecs.nncodec() is not None:
                    measured(network, codec, lambda rows, at=network, of=codec: keep(at, of, rows))  # type: ignore[misc]
    write()


def _is_there(network: Network) -> bool:
    if network.from_package:
        return package_networks.folder() is not None
    return network.key != "minilm" or minilm.folder() is not None


if __name__ == "__main__":
    main()
