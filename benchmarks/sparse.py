"""Pruned networks: bytes and accuracy of whole files, part by part, beside floors and published sizes.

`python benchmarks/sparse.py [lenet300] [lenet5] [squeezenet]`: only those are measured.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

import waterfill
from commits import commit
from decoding import decoded
from results import Section, read, write_page
from waterfill import zoo
from waterfill.codec import adaptive
from waterfill.codec.container import HEADER
from waterfill.codec.pieces import elements, ideal_bits, model
from waterfill.quantize import KMeans
from waterfill.records import Adaptive, Layout
from waterfill.results import CompressionResult

FILES = {
    "lenet300": "mnist_lenet300100_dns_pruned",
    "lenet5": "mnist_lenet5_dns_pruned",
    "squeezenet": "imagenet_squeezenet_deepcompressed",
}
TARGETS: dict[str, dict[str, Any]] = {
    "lenet300": {"tolerance": 0.001},
    "lenet5": {"tolerance": 0.0005},
    "squeezenet": {"quantizers": [KMeans(256)]},
}
GOALS = {"lenet300": 4800, "lenet5": 4000, "squeezenet": 675_763}
"""Bytes: asked for, or those of the published file."""

SAMPLES = 8192
TESTED = 100
"""Images for SqueezeNet, all of whose weights come back as they were."""

TITLES = "Files", "Parts of the files", "Floors of the masks"


def network(name: str) -> torch.nn.Module:
    net = getattr(zoo, name)()
    net.load_state_dict(load_file(zoo.data_folder() / "models" / f"{FILES[name]}.safetensors"))
    return net.eval()


def compressed(name: str, net: torch.nn.Module) -> tuple[CompressionResult, str]:
    """The file, and the call that made it."""
    options = ", ".join(f"{key}={value!r}" for key, value in TARGETS[name].items())
    if name == "squeezenet":
        return waterfill.compress(net, **TARGETS[name]), f"compress(model, {options})"
    data = list(zoo.mnist_calibration(samples=SAMPLES))
    result = waterfill.compress(net, data, **TARGETS[name])
    return result, f"compress(model, {SAMPLES:,} training images, {options})"


def measure(name: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    net = network(name)
    result, call = compressed(name, net)
    copy, raw = decoded(result.data, getattr(zoo, name)()), result.data
    test = list(zoo.imagenet_squeezenet_test(samples=TESTED) if name == "squeezenet" else zoo.mnist_test())
    before, after = waterfill.evaluate(net, test), waterfill.evaluate(copy, test, reference=net)
    row = {
        "network": name,
        "call": call,
        "not zero": not_zero(net),
        "of": result.floating_values,
        "bytes": len(raw),
        "asked for or published": GOALS[name],
        "top-1 before %": round(100 * float(before.accuracy or 0), 2),
        "top-1 after %": round(100 * float(after.accuracy or 0), 2),
        "not zero after": not_zero(copy),
        "KL (nats)": round(float(after.kl or 0), 5),
        "commit": commit(),
    }
    return row, parts(name, raw), floors(name, net)


def not_zero(net: torch.nn.Module) -> int:
    return sum(int((tensor != 0).sum()) for tensor in net.state_dict().values())


def parts(name: str, raw: bytes) -> dict[str, Any]:
    """Bytes of the parts of a file; the mask is what the same symbols would take if all were 0 or 1."""
    found = dict.fromkeys(("mask", "values", "other matrices", "vectors"), 0.0)
    with waterfill.files.WaterfillFile(raw) as file:
        box = file.container
        spans = box.symbol_spans
        for index, pieces in spans.items():
            for (key, start, stop), values in zip(pieces, box.symbols(index, pieces), strict=True):
                layout, spread = box.layouts[key], box.rules[key][1]
                coded = model(spread, layout, start, stop)
                whole = ideal_bits(values, coded) / 8
                if len(layout.shape) < 2:
                    found["vectors"] += whole
                elif spread.adaptive is None:
                    found["other matrices"] += whole
                else:
                    mask = ideal_bits((values != 0).astype(np.int32), coded) / 8
                    found["mask"] += mask
                    found["values"] += whole - mask
        side = sum(chunk.size for chunk in box._directory.chunks if chunk.kind in "ac")
    packed = int.from_bytes(raw[12:16], "little")
    streams = len(raw) - HEADER.size - packed - side - sum(found.values())
    sizes = {**found, "scales, tables, codebooks": side, "directory": packed, "header": HEADER.size, "ends": streams}
    return {"network": name, **{key: round(value) for key, value in sizes.items()}, "all": len(raw)}


def floors(name: str, net: torch.nn.Module) -> dict[str, Any]:
    """Bytes of the masks of the original by three models."""
    order_0 = additive = learnt = 0.0
    for tensor in net.state_dict().values():
        if tensor.ndim < 2:
            continue
        mask = (tensor.numpy() != 0).reshape(*tensor.shape[:2], -1)
        layout = Layout(tuple(tensor.shape))
        order_0 += code_length(mask, np.full(mask.shape, mask.mean()))
        additive += code_length(mask, additive_model(mask))
        flat = elements(mask.reshape(len(mask), -1).astype(np.int32), 0, mask.size)
        widths = (0, 28) if name == "lenet300" else (0,)
        models = [adaptive.model(Adaptive(width), layout, 0, mask.size) for width in widths]
        learnt += min(adaptive.ideal_bits(flat, each) for each in models)
    values = {"order 0": order_0, "rows + columns + taps, parameters not counted": additive, "adaptive, all": learnt}
    return {"network": name, **{key: round(value / 8) for key, value in values.items()}}


def code_length(mask: NDArray[np.bool_], chance: NDArray[np.float64]) -> float:
    chance = chance.clip(1e-12, 1 - 1e-12)
    return float(-np.log2(np.where(mask, chance, 1 - chance)).sum())


def additive_model(mask: NDArray[np.bool_], rounds: int = 60) -> NDArray[np.float64]:
    """Chances of not zero whose log-odds are sums over rows, channels and taps, by Newton's steps, slightly damped."""
    parts = [np.zeros([length if axis == other else 1 for other in range(3)]) for axis, length in enumerate(mask.shape)]
    for _ in range(rounds):
        for axis in range(3):
            chance = 1 / (1 + np.exp(-sum(parts)))
            others = tuple(other for other in range(3) if other != axis)
            slope = (mask - chance).sum(others, keepdims=True) - 0.02 * parts[axis]
            parts[axis] = parts[axis] + np.clip(
                slope / ((chance * (1 - chance)).sum(others, keepdims=True) + 0.02), -1, 1
            )
    return np.asarray(1 / (1 + np.exp(-sum(parts))))


def main(names: list[str]) -> None:
    measured = {name: measure(name) for name in names or list(FILES)}
    known = read("sparse")
    rows = {title: {row["network"]: row for row in known.get(title, [])} for title in TITLES}
    for name, found in measured.items():
        for title, row in zip(TITLES, found, strict=True):
            rows[title][name] = row
    texts = (
        "Whole files. Accuracy of the LeNets is that of the 10,000 MNIST test images; of SqueezeNet, all of whose "
        f"matrices come back bit for bit, that of {TESTED} images. The goals of the LeNets are sizes that were asked "
        "for at no more than 0.1 points lost; that of SqueezeNet is the published file, Deep Compression.",
        "In bytes. The mask is what the symbols of the matrices would take if all were 0 or 1, the values are the "
        "rest; the ends of streams are their eight states.",
        "In bytes, of the original networks, without signs and values. The second model has its parameters for "
        "nothing; the third one, that of the files, has none, and counts everything but one bit for signs and sizes "
        "here and there.",
    )
    sections = [Section(title, text, list(rows[title].values())) for title, text in zip(TITLES, texts, strict=True)]
    text = "LeNets after Dynamic Network Surgery, SqueezeNet decompressed."
    named = [row["commit"] for row in rows["Files"].values()]
    write_page("sparse", "Pruned networks", text, sections, named=named)


if __name__ == "__main__":
    main(sys.argv[1:])
