"""The page of the comparison: ratios first, then bytes, costs, and each network with its picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import peer_codecs
import pictures
import results
from peer_costs import AIM, COSTS, RUNS, SPEED
from peer_equal import Rows, between, equal, ratios
from peer_networks import CODECS, KL, NETWORKS, NNCODEC, ORIGINAL, OURS, TOP1, Network
from results import Section

RATIOS, EQUAL, BETWEEN, CODE = "waterfill / NNCodec", "Bytes at equal quality", "Neighbours", "Commits"

TOP_TEXT = (
    "The same networks, calibration and test data for all codecs, measured by the same code on one machine, in "
    "several runs of it; no network is trained again. "
    "Every file was decoded, and all its bytes count; quality is that of the network that came back. Sizes beside an "
    "original are those of float32 parameters."
    "\n\n"
    "- *waterfill*: `waterfill.compress(model, calibration, rate=...)`, the loader's default calibration data "
    "(training data without their labels). Where the tables have them, *tuned*: the same with `tune=True`; *no data*: "
    "`waterfill.compress(model, rate=...)`.\n"
    "- *NNCodec*: version 2.1.3, dependent quantization, `nonweight_qp=-40`, `qp` in steps of one, each with "
    "`lambda_scale` 0 and 1 (LeNets: also 0.25 and 0.5). It sees no data. "
    "Batch norms are folded by this benchmark before, to one scale and one shift each (its own `bnf` wants to know the "
    "model); multiplying the scales into the convolutions was worse at equal size. Where the tables have `opt_qp`, it "
    "was tried too; the best of all is what counts. "
    "Its trained scalings need labels and are not in these tables: on ResNet-20 at half a point, an earlier "
    "measurement had 93.5 kB with 20,000 labelled images and 87.4 kB with 4,000.\n"
    "- *Deep Compression*: pruning by magnitude, k-means for each tensor, Huffman codes, without the training between "
    "them that its paper has; batch norms folded as for NNCodec, vectors in half precision.\n"
    "- *int + zstd*: rounding to nearest with a step for each row, zstd at level 19; norms and vectors likewise."
)
NO_NNCODEC = f"NNCodec was not there; its rows are left out: `{peer_codecs.INSTALL}`."
RATIOS_TEXT = (
    "Bytes of waterfill over those of NNCodec at the best of its settings, where top-1 is half a point and one point "
    "below the original's, and where the KL divergence to the original is 0.01 and 0.05 nats. The rest of the page "
    "says how they come about."
)
EQUAL_TEXT = (
    "At the target, between two settings of the same codec, linear in top-1 or in the logarithm of KL. Settings that a "
    "smaller file beats are left out first, for every codec alike. Empty: the settings do not reach around it. "
    "Small losses of top-1 are noisy: with 10,000 predictions half a point has a standard error of about 0.2."
)
BETWEEN_TEXT = "The two files of a codec that a row of the table above lies between, in bytes, with their loss."
CODE_TEXT = "The commit whose code made the files of waterfill."
COSTS_TEXT = (
    f"One setting each, whose KL divergence is nearest to {AIM:g} nats; encoding and decoding in a new process each, "
    "on one core, after a tiny network that loads the code. Memory is the peak above what was resident before, with "
    "code, network and data there already. Wall seconds are those of a busy machine."
)
SPEED_TEXT = (
    "22.7 million values, from float32 arrays to a file and back; NNCodec with dependent quantization and "
    "`lambda_scale=1`, waterfill at default effort without data, at the same size. By turns, each in a new process; "
    f"least seconds of {RUNS} runs. The error is that of the weights over their power: no data, no network."
)


def write() -> None:
    """The page, of what the JSON file has."""
    with results.alone("peers") as known:
        there = [(network, known[network.title]) for network in NETWORKS if known.get(network.title)]
        if there:
            sections = [*_compared(there), *_others(known), *(_network(*pair) for pair in there)]
            sections += _measured(known, CODE, CODE_TEXT)
            text = TOP_TEXT if any(_has_nncodec(rows) for _, rows in there) else f"{TOP_TEXT}\n\n{NO_NNCODEC}"
            named = [row["commit"] for row in known.get(CODE, [])]
            results.write_page("peers", "Beside other codecs", text, [s for s in sections if s.rows], (), named)


def _compared(there: Sequence[tuple[Network, Rows]]) -> list[Section]:
    measured = {row["codec"] for _, rows in there for row in rows}
    codecs = [codec for codec in CODECS if codec in measured]
    first = Section(RATIOS, RATIOS_TEXT, [row for pair in there for row in ratios(*pair)])
    tables = ((EQUAL, EQUAL_TEXT, equal, codecs), (BETWEEN, BETWEEN_TEXT, between, [*OURS, NNCODEC]))
    return [first] + [
        Section(title, text, [row for pair in there for row in how(*pair, [c for c in shown if c in codecs])])
        for title, text, how, shown in tables
    ]


def _has_nncodec(rows: Rows) -> bool:
    return any(row["codec"] == NNCODEC for row in rows)


def _others(known: dict[str, Any]) -> list[Section]:
    return _measured(known, SPEED, SPEED_TEXT) + _measured(known, COSTS, COSTS_TEXT)


def _measured(known: dict[str, Any], title: str, text: str) -> list[Section]:
    return [Section(title, text, known[title])] if known.get(title) else []


def _network(network: Network, rows: Rows) -> Section:
    rows = sorted(rows, key=lambda row: ((ORIGINAL, *CODECS).index(row["codec"]), row["bytes"]))
    columns = [TOP1, KL, *([] if network.loss == Network.loss else network.loss[:1])]
    picture = pictures.peers(rows, columns, CODECS, f"peers-{network.key}")
    return Section(network.title, f"Measured on {network.tested}.", rows, picture)
