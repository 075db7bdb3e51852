"""Bytes against quality beside other codecs: the same networks, data and measurement for all.

Slow: hours on a busy machine. `--only` and `--codecs` measure some and keep what the others had in the JSON file;
`--rates` and `--qps` add settings to those that are there. NNCodec is built from source and needs only this:
pip install --no-deps nncodec==2.1.3
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import minilm
import peer_codecs
import peer_costs
import peer_page
import results
import waterfill
from commits import commit
from measure import say
from peer_networks import CODECS, KL, NETWORKS, NNCODEC, ORIGINAL, OURS, TOP1, Network
from peer_page import CODE
from peer_ways import ways
from waterfill.evaluation import reference_outputs

Row = dict[str, Any]
Rows = list[Row]


def measured(
    network: Network, codecs: Sequence[str], save: Callable[[Rows], None], options: argparse.Namespace
) -> None:
    """Measure all settings of the codecs, and save after each."""
    model, test = network.original(), network.test()
    if options.quick:
        test = [next(iter(test))]
    references = reference_outputs(model, test)
    values = sum(each.numel() for each in {id(p): p for p in model.parameters()}.values())
    rows = [_row(ORIGINAL, "", 4 * values, values, _quality(network, model, test, references))]
    with tempfile.TemporaryDirectory() as folder:
        for way in ways(network, model, codecs, (options.work or Path(folder)) / network.key):
            data = way.encode()
            quality = _quality(network, way.decode(data), test, references)
            rows.append(_row(way.codec, way.setting, len(data), values, quality))
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


def _row(codec: str, setting: str, size: int, values: int, quality: Row) -> Row:
    return {"codec": codec, "setting": setting, "bytes": size, "bit/value": round(8 * size / values, 3), **quality}


def _save(network: Network, codecs: Sequence[str], add: bool, rows: Rows) -> None:
    """Into the JSON file, where other runs may write meanwhile."""
    new = {(row["codec"], row["setting"]) for row in rows}
    with results.alone("peers") as known:
        kept = [row for row in known.get(network.title, []) if (row["codec"], row["setting"]) not in new]
        kept = [row for row in kept if add or row["codec"] not in codecs]
        code = _codes(known.get(CODE, []), network, codecs)
        results.keep("peers", known | {network.title: [*rows, *kept], CODE: code})


def _codes(known: Rows, network: Network, codecs: Sequence[str]) -> Rows:
    """The commits whose code made files of waterfill."""
    own = [codec for codec in codecs if codec in OURS]
    kept = [row for row in known if row["network"] != network.title or row["codec"] not in own]
    return kept + [{"network": network.title, "codec": codec, "commit": commit()} for codec in own]


def main() -> None:
    options = _options()
    codecs = [codec for codec in options.codecs if _there(codec)]
    for network in NETWORKS:
        if network.key in options.only and not options.write and not options.minilm:
            chosen = _chosen(network, options)
            if options.costs:
                peer_costs.measure(chosen, codecs)
            else:
                measured(chosen, codecs, partial(_save, network, codecs, options.add), options)
            peer_page.write()
    if options.minilm:
        peer_costs.minilm_speed()
    peer_page.write()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    keys = [network.key for network in NETWORKS]
    parser.add_argument("--only", nargs="+", choices=keys, default=keys, metavar="NETWORK", help=", ".join(keys))
    parser.add_argument("--codecs", nargs="+", choices=CODECS, default=list(CODECS), help="the others keep their rows")
    parser.add_argument("--rates", nargs="+", type=float, help="these of waterfill instead of the network's own")
    parser.add_argument("--qps", nargs="+", type=float, help="these of NNCodec instead of the network's own")
    parser.add_argument("--lambdas", nargs="+", type=float, help="these of NNCodec instead of the network's own")
    parser.add_argument("--opt-qps", nargs="+", type=float, help="these of NNCodec with `opt_qp`, and no others")
    parser.add_argument("--add", action="store_true", help="keep other settings of the codecs that are measured")
    parser.add_argument("--costs", action="store_true", help="time and memory of one setting each, after the sweeps")
    parser.add_argument("--minilm", action="store_true", help=f"speed on all-MiniLM-L6-v2: {minilm.INSTALL}")
    parser.add_argument("--work", type=Path, help="folder of what waterfill has finished, to keep for the next time")
    parser.add_argument("--quick", action="store_true", help="two settings, one batch; write to $WATERFILL_DOCS")
    parser.add_argument("--write", action="store_true", help="only the page, of what the JSON file has")
    options = parser.parse_args()
    if options.quick and "WATERFILL_DOCS" not in os.environ:
        parser.error("--quick would replace the results; set WATERFILL_DOCS to the folder to write to")
    return options


def _there(codec: str) -> bool:
    if codec == NNCODEC and peer_codecs.nncodec() is None:
        say(f"{NNCODEC}: left out; {peer_codecs.INSTALL}")
        return False
    return True


def _chosen(network: Network, options: argparse.Namespace) -> Network:
    """With the settings that were asked for."""
    if options.rates:
        network = network.at_rates(options.rates)
    if options.qps:
        network = replace(network, qps=options.qps)
    if options.opt_qps:
        network = replace(network, qps=(), opt_qps=options.opt_qps)
    if options.lambdas:
        network = replace(network, lambdas=options.lambdas)
    if not options.quick:
        return network
    names = ("rates", "tuned_rates", "free_rates", "qps", "opt_qps", "deep", "bits")
    return replace(network, **{name: getattr(network, name)[-2:] for name in names})


if __name__ == "__main__":
    main()
