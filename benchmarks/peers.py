"""Bytes against quality beside other codecs: the same networks, data and measurement for all.

Slow: hours on a busy machine. `--only` measures some networks and keeps what the others had in the JSON file.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

import peer_codecs
import pictures
import results
import waterfill
from compressed import Once
from measure import say
from peer_codecs import DeepCompression, NearestZstd, NnCodec
from results import Section
from waterfill import importance, zoo
from waterfill.evaluate import reference_outputs

Row = dict[str, Any]
Rows = list[Row]

WATERFILL, FREE, NNCODEC, DEEP, NEAREST = "waterfill", "waterfill, no data", "NNCodec", "Deep Compression", "int + zstd"
CODECS = (WATERFILL, FREE, NNCODEC, DEEP, NEAREST)
KL, TOP1 = "KL (nats)", "top-1 %"
ORIGINAL = "original"
EQUAL = "At equal quality"
DROPS, DIVERGENCES = (0.5, 1.0), (0.01, 0.05)
TINY = 1e-9


@dataclass(frozen=True)
class Network:
    """A network, its data and the settings to try.

    Attributes:
        key: its name in the zoo and on the command line.
        title: heading, and key in the JSON file.
        calibration: batches for `waterfill.compress`.
        test: batches on which everybody is measured.
        tested: which those are.
        rates: of waterfill with data, bit/value.
        free_rates: without data.
        qps: of NNCodec, each with both values of `lambda_scale`.
        deep: thresholds in standard deviations, and numbers of clusters.
        bits: of rounding to nearest.
        loss: name and unit, in nats, of the cross-entropy.
    """

    key: str
    title: str
    calibration: Callable[[], Any]
    test: Callable[[], Any]
    tested: str
    rates: tuple[float, ...] = (2.0, 2.25, 2.5, 3.0, 3.5)
    free_rates: tuple[float, ...] = (2.5, 3.0, 3.5, 4.0, 5.0)
    qps: tuple[int, ...] = (-20, -21, -22, -24, -26)
    deep: tuple[tuple[float, int], ...] = ((0.25, 8), (0.0, 8), (0.25, 16), (0.0, 16), (0.25, 32), (0.0, 32))
    bits: tuple[int, ...] = (3, 4, 5, 6, 7)
    loss: tuple[str, float] = ("cross-entropy (nats)", 1.0)

    def original(self) -> nn.Module:
        return zoo.pretrained(self.key)

    def empty(self) -> nn.Module:
        return zoo.PRETRAINED[self.key].factory()


_LENET: dict[str, Any] = {
    "calibration": zoo.mnist_calibration,
    "test": zoo.mnist_test,
    "tested": "10,000 test images",
    "rates": (0.2, 0.3, 0.4, 0.5, 0.75),
    "free_rates": (0.3, 0.5, 0.75, 1.0, 1.5, 2.0),
    "qps": (-12, -13, -14, -15, -16, -17, -18, -19, -20, -22, -24),
    "deep": tuple((threshold, clusters) for threshold in (2.5, 2.0, 1.5, 1.0, 0.5) for clusters in (4, 8, 16)),
    "bits": (2, 3, 4, 5, 6),
}
_CIFAR: dict[str, Any] = {
    "calibration": zoo.cifar10_calibration,
    "test": partial(zoo.cifar10_test, batch_size=50),
    "tested": "10,000 test images",
}
_LANGUAGE: dict[str, Any] = {
    "rates": (2.0, 2.5, 3.0, 3.5, 4.0),
    "free_rates": (2.5, 3.0, 4.0, 5.0, 6.0),
    "qps": (-12, -16, -18, -20, -22, -24, -28),
    "deep": ((0.25, 8), (0.0, 8), (0.0, 16), (0.0, 32), (0.0, 64)),
    "bits": (3, 4, 5, 6, 7),
}

NETWORKS = (
    Network("resnet20", "ResNet-20", **_CIFAR),
    Network("lenet300", "LeNet-300-100", **_LENET),
    Network("lenet5", "LeNet-5", **_LENET),
    Network(
        "mobilenet_v1",
        "MobileNet v1 0.25",
        zoo.imagenet_calibration,
        partial(zoo.imagenet_test, samples=744),
        "744 images of the ImageNet sample that are not among those for calibration",
        rates=(2.5, 3.0, 3.5, 4.0, 5.0),
        free_rates=(3.5, 4.0, 5.0, 6.0),
        qps=(-20, -22, -24, -26, -28, -32),
        deep=((0.0, 16), (0.0, 32), (0.0, 64), (0.0, 128)),
        bits=(4, 5, 6, 7, 8),
    ),
    Network(
        "charlstm",
        "Character LSTM",
        zoo.charlstm_calibration,
        zoo.charlstm_test,
        "the last 200,000 characters of Tiny Shakespeare",
        loss=("bits per character", math.log(2)),
        **_LANGUAGE,
    ),
    Network(
        "stories260k",
        "stories260K",
        zoo.stories_calibration,
        partial(zoo.stories_test, samples=144),
        "the 144 windows of 512 tokens that are not among those for calibration",
        loss=("nats per token", 1.0),
        **{**_LANGUAGE, "rates": (3.0, 3.5, 4.0, 5.0), "qps": (-16, -20, -22, -24, -26, -28, -32)},
    ),
    Network("resnet32", "ResNet-32", **_CIFAR),
    Network(
        "paper_conv_w32",
        "The paper's convolutional network, a quarter as wide",
        zoo.paper_cifar10_calibration,
        partial(zoo.paper_cifar10_test, batch_size=50),
        "10,000 test images",
        rates=(0.75, 1.0, 1.5, 2.0, 2.5),
        free_rates=(1.0, 1.5, 2.0, 3.0, 4.0),
    ),
)


@dataclass(frozen=True)
class Way:
    """One codec at one setting: to bytes, and back to a network."""

    codec: str
    setting: str
    encode: Callable[[], bytes]
    decode: Callable[[bytes], nn.Module]
    before: Callable[[], float] = lambda: 0.0


class Replay(nn.Module):
    """Gives outputs that are known already."""

    def __init__(self, outputs: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.outputs = iter(outputs)

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        return next(self.outputs)


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
    if NNCODEC in codecs:
        state = peer_codecs.folded(model)
        yield from (
            _peer(network, NNCODEC, NnCodec(qp, scale), state) for qp in spread(network.qps) for scale in (1.0, 0.0)
        )
    if WATERFILL in codecs:
        yield from _waterfill(network, model)
    state = peer_codecs.folded(model)
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


def _waterfill(network: Network, model: nn.Module) -> Iterator[Way]:
    """With data; all rates share one importance, whose seconds count for each."""
    clock, data = Clock(), list(network.calibration())
    run = partial(waterfill.compress, model, data, importance=clock)
    for rate in spread(network.rates):
        yield replace(_own(network, WATERFILL, rate, run), before=lambda: clock.seconds - clock.spent)


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


def measured(network: Network, codecs: Sequence[str], save: Callable[[Rows], None], *, quick: bool) -> None:
    """Measure all settings of the codecs, and save after each."""
    model, test = network.original(), network.test()
    if quick:
        test = [next(iter(test))]
    references = reference_outputs(model, test)
    values = sum(each.numel() for each in {id(p): p for p in model.parameters()}.values())
    rows = [_row(ORIGINAL, "", 4 * values, values, _quality(network, Replay(references), test, references), 0.0, 0.0)]
    for way in ways(network, model, codecs):
        start = time.process_time()
        data = way.encode()
        middle = time.process_time()
        copy = way.decode(data)
        end = time.process_time()
        quality = _quality(network, copy, test, references)
        encoding = middle - start + way.before()
        rows.append(_row(way.codec, way.setting, len(data), values, quality, encoding, end - middle))
        say(f"{network.key} {rows[-1]}")
        save(rows)


def _quality(network: Network, model: nn.Module, test: Any, references: Sequence[torch.Tensor]) -> Row:
    found = waterfill.evaluate(model, test, reference=references)
    name, unit = network.loss
    return {
        KL: float(found.kl or 0),
        TOP1: round(100 * float(found.accuracy or 0), 3),
        name: round(float(found.cross_entropy or 0) / unit, 5),
    }


def _row(codec: str, setting: str, size: int, values: int, quality: Row, encoding: float, decoding: float) -> Row:
    return {
        "codec": codec,
        "setting": setting,
        "bytes": size,
        "bit/value": round(8 * size / values, 3),
        **quality,
        "encode, CPU s": round(encoding, 2),
        "decode, CPU s": round(decoding, 2),
    }


# Equal quality

Loss = Callable[[Row], float]
Point = tuple[float, float]


@dataclass(frozen=True)
class Target:
    """A loss at which files are compared, and in what it is taken to be linear between two of them."""

    name: str
    loss: Loss
    value: float
    scale: Callable[[float], float] = float


def front(rows: Sequence[Row], loss: Loss) -> list[Point]:
    """(bytes, loss) of the settings that no smaller file is as good as, by size."""
    found: list[Point] = []
    for size, value in sorted((row["bytes"], loss(row)) for row in rows):
        if not found or value < found[-1][1]:
            found.append((size, value))
    return found


def neighbours(points: Sequence[Point], target: Target) -> tuple[Point, Point] | None:
    """The last worse and the first better file; None where the settings do not reach around the target."""
    for worse, better in pairwise(points):
        if better[1] <= target.value <= worse[1]:
            return worse, better
    return None


def interpolated(pair: tuple[Point, Point] | None, target: Target) -> float | None:
    """Bytes at the target, between the neighbours."""
    if pair is None:
        return None
    (small, worse), (large, better) = pair
    worse, aim, better = (target.scale(max(each, TINY)) for each in (worse, target.value, better))
    return small + (worse - aim) / (worse - better) * (large - small)


def equal(network: Network, rows: Rows) -> Rows:
    """A row for each quality that is compared."""
    top1 = next(row[TOP1] for row in rows if row["codec"] == ORIGINAL)
    targets = [Target(f"top-1 -{drop:g}", lambda row: top1 - row[TOP1], drop) for drop in DROPS]
    targets += [Target(f"KL {kl:g}", lambda row: row[KL], kl, math.log) for kl in DIVERGENCES]
    return [_compared(network, rows, target) for target in targets]


def _compared(network: Network, rows: Rows, target: Target) -> Row:
    pairs = {c: neighbours(front([r for r in rows if r["codec"] == c], target.loss), target) for c in CODECS}
    sizes = {codec: interpolated(pair, target) for codec, pair in pairs.items()}
    ours, theirs = sizes[WATERFILL], sizes[NNCODEC]
    return {
        "network": network.title,
        "quality": target.name,
        **{codec: "" if size is None else round(size) for codec, size in sizes.items()},
        "waterfill / NNCodec": "" if ours is None or theirs is None else round(ours / theirs, 3),
        **{f"{codec} between": _text(pairs[codec]) for codec in (WATERFILL, NNCODEC)},
    }


def _text(pair: tuple[Point, Point] | None) -> str:
    return "" if pair is None else " and ".join(f"{size:,} ({loss:.3g})" for size, loss in pair)


# The page

TOP_TEXT = (
    "All codecs in one run, on the same networks and test data, measured by the same code; nothing is trained again. "
    "Every file was decoded, and all its bytes count; quality is that of the network that came back. Sizes beside an "
    "original are those of float32 parameters. CPU seconds are of one thread on a busy machine, importance included."
    "\n\n"
    "- *waterfill*: `waterfill.compress(model, calibration, rate=...)`, the loader's default calibration data "
    "(training data without their labels); *waterfill, no data*: `waterfill.compress(model, rate=...)`.\n"
    "- *NNCodec*: version 2.1.3, dependent quantization, `lambda_scale` 0 and 1, `nonweight_qp=-40`. It sees no data. "
    "Batch norms are folded by this benchmark before, to one scale and one shift each (its own `bnf` wants to know the "
    "model); multiplying the scales into the convolutions was worse at equal size.\n"
    "- *Deep Compression*: pruning by magnitude, k-means for each tensor, Huffman codes, without the training between "
    "them that its paper has; batch norms folded as for NNCodec, vectors in half precision.\n"
    "- *int + zstd*: rounding to nearest with a step for each row, zstd at level 19; norms and vectors likewise."
)
EQUAL_TEXT = (
    "Bytes where top-1 is half a point and one point below the original's, and where the KL divergence to the original "
    "is 0.01 and 0.05 nats, between two settings of the same codec, linear in top-1 or in the logarithm of KL. "
    "Settings that a smaller file beats are left out first, for every codec alike. Empty: the settings do not reach "
    "around it. "
    "*Between*: these two files in bytes, with their loss. Small losses of top-1 are noisy: with 10,000 predictions "
    "half a point has a standard error of about 0.2."
)


def write(known: Mapping[str, Rows]) -> None:
    """The page, of what there is."""
    there = [network for network in NETWORKS if known.get(network.title)]
    if not there:
        return
    text = TOP_TEXT
    if not any(row["codec"] == NNCODEC for network in there for row in known[network.title]):
        text += f"\n\nNNCodec was not there; its rows are left out: `{peer_codecs.INSTALL}`."
    compared = [row for network in there for row in equal(network, known[network.title])]
    sections = [Section(EQUAL, EQUAL_TEXT, compared)]
    for network in there:
        rows = sorted(known[network.title], key=lambda row: ((ORIGINAL, *CODECS).index(row["codec"]), row["bytes"]))
        picture = pictures.peers(rows, (TOP1, KL), CODECS, f"peers-{network.key}")
        sections.append(Section(network.title, f"Measured on {network.tested}.", rows, picture))
    results.write_page("peers", "Beside other codecs", text, sections)


def _save(network: Network, codecs: Sequence[str], rows: Rows) -> None:
    """Into the JSON file, where other runs may have written meanwhile."""
    known = results.read("peers")
    kept = [row for row in known.get(network.title, []) if row["codec"] not in (*codecs, ORIGINAL)]
    results.keep("peers", known | {network.title: [*rows, *kept]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    keys = [network.key for network in NETWORKS]
    parser.add_argument("--only", nargs="+", choices=keys, default=keys, metavar="NETWORK", help=", ".join(keys))
    parser.add_argument("--codecs", nargs="+", choices=CODECS, default=list(CODECS), help="the others keep their rows")
    parser.add_argument("--quick", action="store_true", help="two settings, one batch; write to $WATERFILL_DOCS")
    parser.add_argument("--write", action="store_true", help="only the page, of what the JSON file has")
    options = parser.parse_args()
    if options.quick and "WATERFILL_DOCS" not in os.environ:
        parser.error("--quick would replace the results; set WATERFILL_DOCS to the folder to write to")
    codecs = [codec for codec in options.codecs if codec != NNCODEC or peer_codecs.nncodec() is not None]
    if len(codecs) < len(options.codecs):
        say(f"{NNCODEC}: left out; {peer_codecs.INSTALL}")
    for network in NETWORKS:
        if network.key in options.only and not options.write:
            chosen = _quick(network) if options.quick else network
            measured(chosen, codecs, quick=options.quick, save=partial(_save, network, codecs))
            write(results.read("peers"))
    write(results.read("peers"))


def _quick(network: Network) -> Network:
    names = ("rates", "free_rates", "qps", "deep", "bits")
    return replace(network, **{name: getattr(network, name)[-2:] for name in names})


if __name__ == "__main__":
    main()
