"""The character LSTMs, compressed in memory as the modules that they are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import exp
from typing import Any

import waterfill
from commits import commit
from decoding import decoded
from hf_tasks import AGREEMENT, KL, PERPLEXITY
from waterfill import zoo

Row = dict[str, Any]

TITLE = "Character LSTMs"
STREAMS = 16
"""Of the test text, of 3,124 characters each."""


@dataclass(frozen=True)
class Network:
    """A network and its text.

    Attributes:
        key: of its weights.
        name: for people.
        calibration: batches for it.
        test: other batches.
    """

    key: str
    name: str
    calibration: Callable[[], Iterable[Any]]
    test: Callable[..., Iterable[Any]]


NETWORKS = (
    Network("charlstm", "Shakespeare", zoo.charlstm_calibration, zoo.charlstm_test),
    Network("charlstm_bronte", "Bronte", zoo.charlstm_bronte_calibration, zoo.charlstm_bronte_test),
)


def measure(rates: Sequence[float], save: Callable[[str, Row], None], known: Sequence[Row]) -> None:
    """Compress both at all rates that are not there, and measure the files on the end of their texts.

    Args:
        rates: bits per value of the whole file.
        save: called with the title of the section and a row.
        known: rows that are there.
    """
    done = {(row["method"], row["setting"]) for row in known}
    for network in NETWORKS:
        for rate in rates:
            if (network.name, f"rate {rate:g}") not in done:
                save(TITLE, _row(network, rate))


def _row(network: Network, rate: float) -> Row:
    model = zoo.pretrained(network.key)
    result = waterfill.compress(model, network.calibration(), rate=rate)
    found = waterfill.evaluate(
        decoded(result.data, copy.deepcopy(model)), network.test(samples=STREAMS), reference=model
    )
    return {
        "method": network.name,
        "setting": f"rate {rate:g}",
        "bytes": result.size_bytes,
        "bit/value": round(result.rate, 4),
        KL: float(found.kl or 0),
        PERPLEXITY: exp(float(found.cross_entropy or 0)),
        AGREEMENT: 100 * float(found.agreement or 0),
        "commit": commit(),
    }
