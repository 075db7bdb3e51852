"""The codecs that are compared, each at all its settings: a network to bytes, and back."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import peer_codecs
import waterfill
from decoding import decoded
from peer_codecs import DeepCompression, NearestZstd, NnCodec
from peer_networks import DEEP, FREE, NEAREST, NNCODEC, TUNED, WATERFILL, Network


@dataclass(frozen=True)
class Way:
    """One codec at one setting: to bytes, and back to a network."""

    codec: str
    setting: str
    encode: Callable[[], bytes]
    decode: Callable[[bytes], nn.Module]


def ways(network: Network, model: nn.Module, codecs: Sequence[str], work: Path | None = None) -> Iterator[Way]:
    """All settings of the codecs; those of waterfill share what a work folder keeps, if there is one."""
    data = list(network.calibration()) if {WATERFILL, TUNED} & set(codecs) else []
    rates = {WATERFILL: network.rates, TUNED: network.tuned_rates or network.rates}
    for rate in spread(sorted({*rates[WATERFILL], *rates[TUNED]})):
        for codec in (WATERFILL, TUNED):
            if codec in codecs and rate in rates[codec]:
                run = partial(waterfill.compress, model, data, work=work, tune=codec == TUNED)
                yield _own(network, codec, rate, run)
    state = peer_codecs.folded(model)
    if NNCODEC in codecs:
        peers = [NnCodec(qp, scale) for qp in spread(network.qps) for scale in network.lambdas]
        peers += [NnCodec(qp, 1.0, optimize=True) for qp in spread(network.opt_qps)]
        yield from (_peer(network, NNCODEC, peer, state) for peer in peers)
    if FREE in codecs:
        run = partial(waterfill.compress, model)
        yield from (_own(network, FREE, rate, run) for rate in spread(network.free_rates))
    if NEAREST in codecs:
        yield from (_peer(network, NEAREST, NearestZstd(bits), state) for bits in spread(network.bits))
    if DEEP in codecs:
        yield from (_peer(network, DEEP, DeepCompression(*pair), state) for pair in spread(network.deep))


def spread(settings: Sequence[Any]) -> list[Any]:
    """Every second one first, so that a run that was stopped has a coarse sweep."""
    return [*settings[1::2], *settings[::2]]


def _own(network: Network, codec: str, rate: float, run: Callable[..., Any]) -> Way:
    return Way(codec, f"rate {rate:g}", lambda: bytes(run(rate=rate).data), lambda data: decoded(data, network.empty()))


def _peer(network: Network, codec: str, peer: peer_codecs.Codec, state: peer_codecs.Arrays) -> Way:
    return Way(
        codec,
        peer.setting,
        lambda: peer.encode(state),
        lambda data: peer_codecs.unfolded(peer.decode(data), network.empty()),
    )


def warm(codec: str) -> None:
    """Encode and decode a tiny network, so that what comes later finds its code compiled and loaded."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 72, 3), nn.Flatten(), nn.Linear(1152, 10)
    ).eval()
    data = [(torch.randn(8, 3, 8, 8), torch.arange(8))]
    if codec in (WATERFILL, TUNED, FREE):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.wf"
            waterfill.compress(model, None if codec == FREE else data, rate=2.0).save(path)
            waterfill.load(path, into=model)
        return
    peer = {NNCODEC: NnCodec(-20, 1.0), DEEP: DeepCompression(0.5, 8)}.get(codec, NearestZstd(4))
    peer_codecs.unfolded(peer.decode(peer.encode(peer_codecs.folded(model))), model)
