"""The codecs that are compared, each at all its settings: a network to bytes, and back."""

from __future__ import annotations

import inspect
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import peer_codecs
import waterfill
from compressed import Once
from peer_codecs import DeepCompression, NearestZstd, NnCodec
from peer_networks import DEEP, FREE, NEAREST, NNCODEC, TUNED, WATERFILL, Network
from waterfill import importance


@dataclass(frozen=True)
class Way:
    """One codec at one setting: to bytes, and back to a network."""

    codec: str
    setting: str
    encode: Callable[[], bytes]
    decode: Callable[[bytes], nn.Module]
    before: Callable[[], float] = lambda: 0.0


@dataclass
class Clock:
    """An estimator that estimates once, and the CPU seconds it took."""

    once: Once = field(default_factory=lambda: Once(importance.kronecker()))
    seconds: float = 0.0
    spent: float = 0.0

    @property
    def name(self) -> str:
        return self.once.name

    def estimate(self, *args: Any, **options: Any) -> Any:
        start = time.process_time()
        forms = self.once.estimate(*args, **options)
        self.spent = time.process_time() - start
        self.seconds = max(self.seconds, self.spent)
        return forms


def ways(network: Network, model: nn.Module, codecs: Sequence[str]) -> Iterator[Way]:
    """All settings of the codecs."""
    for codec in (WATERFILL, TUNED):
        if codec in codecs:
            yield from _waterfill(network, model, codec)
    state = peer_codecs.folded(model)
    if NNCODEC in codecs:
        peers = [NnCodec(qp, scale) for qp in spread(network.qps) for scale in network.lambdas]
        peers += [NnCodec(qp, 1.0, optimize=True) for qp in spread(network.opt_qps)]
        yield from (_peer(network, NNCODEC, peer, state) for peer in peers)
    if FREE in codecs:
        yield from (
            _own(network, FREE, rate, partial(waterfill.compress, model)) for rate in spread(network.free_rates)
        )
    if NEAREST in codecs:
        yield from (_peer(network, NEAREST, NearestZstd(bits), state) for bits in spread(network.bits))
    if DEEP in codecs:
        yield from (_peer(network, DEEP, DeepCompression(*pair), state) for pair in spread(network.deep))


def spread(settings: Sequence[Any]) -> list[Any]:
    """Every second one first, so that a run that was stopped has a coarse sweep."""
    return [*settings[1::2], *settings[::2]]


def can_tune() -> bool:
    """Whether this version of `waterfill.compress` has `tune`."""
    return "tune" in inspect.signature(waterfill.compress).parameters


def _waterfill(network: Network, model: nn.Module, codec: str) -> Iterator[Way]:
    """With data; all rates share one importance, whose seconds count for each."""
    clock, data = Clock(), list(network.calibration())
    run = partial(waterfill.compress, model, data, importance=clock, **({"tune": True} if codec == TUNED else {}))
    for rate in spread(network.tuned_rates if codec == TUNED and network.tuned_rates else network.rates):
        yield replace(_own(network, codec, rate, run), before=lambda: clock.seconds - clock.spent)


def _own(network: Network, codec: str, rate: float, run: Callable[..., Any]) -> Way:
    return Way(codec, f"rate {rate:g}", lambda: bytes(run(rate=rate).data), partial(_loaded, network))


def _peer(network: Network, codec: str, peer: peer_codecs.Codec, state: peer_codecs.Arrays) -> Way:
    return Way(
        codec,
        peer.setting,
        lambda: peer.encode(state),
        lambda data: peer_codecs.unfolded(peer.decode(data), network.empty()),
    )


def _loaded(network: Network, data: bytes) -> nn.Module:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.wf"
        path.write_bytes(data)
        return waterfill.load(path, into=network.empty()).eval()


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
