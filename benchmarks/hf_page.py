"""The page of transformers: what is saved at equal quality, every file, and what a large model takes."""

from __future__ import annotations

from typing import Any

import hf_lstm
import results
from hf_equal import RATE, Rows, equal
from hf_tasks import MINILM, SMOLLM, TASKS, Task
from hf_ways import FREE, GPTQ, MEMORY, METHODS, NEAREST, SCALAR, WATERFILL
from results import Section

PAGE, SCALE, RESIDENT = "transformers", "Larger than memory", "Resident"

TOP_TEXT = (
    "The same networks, calibration data and measurement for all methods; no network is trained again. Rates are "
    "those of whole files over all values of the network, tied ones once: waterfill's with headers and everything, "
    "the others' without any header, only packed integers, scales, zero points, and in half precision what is no "
    "matrix. Every file was decoded, and quality is that of the network that came back. "
    "The commit is that of the code of waterfill."
    "\n\n"
    f"- *{WATERFILL}*: `waterfill.compress_directory(folder, out, calibration, rate=...)`, block by block.\n"
    f"- *{MEMORY}*: `waterfill.compress(model, calibration, rate=...)`.\n"
    f"- *{FREE}*: `waterfill.compress_directory(folder, out, rate=...)`.\n"
    f"- *{SCALAR}*: the first with `quantizers=[Feedback(states=1)]`: column by column, each makes up for the errors "
    "before it, with steps proportional to 1 / U_jj, in the manner of WaterSIC, with waterfill's importances, filter, "
    "allocation and entropy coder; only the trellis is missing.\n"
    f"- *{GPTQ}*: Frantar et al. 2023, implemented here: layer by layer on what the layers before give once they are "
    "quantized, damping 0.01, groups of 32 with scales in half precision (of least squared error), without and with "
    "act-order (then with static groups); embeddings rounded to nearest, with the same bits or one more.\n"
    f"- *{NEAREST}*: groups of 32 with scales in half precision (of least squared error), all matrices."
)
TARGETS = {MINILM.key: {GPTQ: 0.4, SCALAR: 0.15}, SMOLLM.key: {GPTQ: 1.0}}
"""Bits per weight that waterfill is to take less with data."""

OTHERS = {WATERFILL: (SCALAR, GPTQ, NEAREST), MEMORY: (SCALAR, GPTQ, NEAREST), FREE: (NEAREST,)}
"""What each of our methods is compared with."""

SCALE_TEXT = (
    "A checkpoint of random weights (normal, of another width in every layer) of the shape of TinyLlama, in five "
    "shards: it has no redundancy but its shape, so it says nothing of quality. Every step in a new process; memory "
    "is the most that was resident, with Python and PyTorch in it."
)
RESIDENT_TEXT = (
    "Greedy generation of 16 tokens with a cache of keys and values, from the checkpoint above, compressed without "
    'data and with `effort="fast"`: weights kept as they are in the file and decoded block by block, beside all '
    "decoded at once; two threads, `OMP_WAIT_POLICY=PASSIVE`. Tokens per second are those after the first one, and "
    "of the fastest, on a machine that is busy with other work; the CPU seconds of a token depend less on that, and "
    "two idle cores take half of them. Logits with one digest are the same bits."
)


def write() -> None:
    """The page, of what the JSON file has."""
    with results.alone(PAGE) as known:
        tasks = [(task, known[task.title]) for task in TASKS if known.get(task.title)]
        sections = [section for pair in tasks for section in (*_saved(*pair), _files(*pair))]
        sections += [Section(title, text, known[title]) for title, text in _LARGE if known.get(title)]
        if sections:
            results.write_page(PAGE, "Transformers", TOP_TEXT, sections, named=_commits(known))
            results.keep(PAGE, known)


def _commits(known: dict[str, Rows]) -> list[str]:
    """Those of the code that made files of waterfill; the other methods do not depend on it."""
    ours = {WATERFILL, MEMORY, FREE, SCALAR}
    return [row["commit"] for rows in known.values() for row in rows if "commit" in row and row.get("method") in ours]


LSTM_TEXT = (
    "Two LSTM layers of 128, `waterfill.compress(model, calibration, rate=...)`; 16 streams of 3,124 characters from "
    "the end of the text that the network was trained on, calibration on 128 windows of 256 before it."
)
_LARGE = ((hf_lstm.TITLE, LSTM_TEXT), (SCALE, SCALE_TEXT), (RESIDENT, RESIDENT_TEXT))


def _saved(task: Task, rows: Rows) -> list[Section]:
    """Tables of the rate at equal quality, with those of our methods that were measured."""
    found = []
    for ours, others in OTHERS.items():
        table = equal(rows, ours, others, task.loss)
        if table:
            found.append(Section(f"{task.title}: {ours} at equal quality", _saved_text(task, ours), table))
    return found


def _saved_text(task: Task, ours: str) -> str:
    text = (
        f"The rate of {ours} at the {task.loss} of each file, on its own curve, linear in the logarithm between "
        "neighbours; *less* is the difference in bits per value. For every number of bits the setting that loses the "
        "least for its rate."
    )
    if ours != FREE and task.key in TARGETS:
        aims = " and ".join(f"{aim:g} bit less than {method}" for method, aim in TARGETS[task.key].items())
        text += f" To be reached: {aims}."
    return f"{text} {task.note}".rstrip()


def _files(task: Task, rows: Rows) -> Section:
    ordered = sorted(rows, key=lambda row: (METHODS.index(row["method"]), row[RATE]))
    text = f"Measured on {task.tested}."
    if task.unused:
        text += (
            f" The module `{task.unused}` does not matter for it: {WATERFILL} stores it, priced like the least "
            f"important of its shape, in memory it stores zeros, and the bytes of {GPTQ} and {NEAREST} are those "
            "without it."
        )
    shared = [key for key in ordered[0] if all(key in each for each in ordered)]  # older rows had times as well
    return Section(task.title, text, [{key: each[key] for key in shared} for each in ordered])


def row(method: str, setting: str, size: int, values: int, measured: dict[str, Any]) -> dict[str, Any]:
    """A row of a network's table."""
    rate = {"bytes": size, RATE: round(8 * size / values, 4)}
    return {"method": method, "setting": setting, **rate, **measured}
