"""Compare README with the pages of results: every line with numbers, and the page that they are from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import results
from hf_equal import equal
from hf_tasks import COSINE, KL, MINILM, PERPLEXITY, STORIES, Task
from hf_ways import GPTQ, SCALAR, WATERFILL
from peer_networks import ORIGINAL

README = results.DOCS.parent / "README.md"
Data = Mapping[str, Any]
MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"


@dataclass(frozen=True)
class Claim:
    """A line of README with numbers.

    Attributes:
        start: how it begins.
        page: where they are from.
        says: what the line has to have somewhere, made from the JSON of the page.
    """

    start: str
    page: str
    says: Callable[[Data], Iterable[str]]


def missing(claim: Claim, readme: Path = README) -> list[str]:
    """Find what a line of README lacks of what its page says.

    Args:
        claim: which line.
        readme: the file.

    Returns:
        Texts of the page that the line does not have; that there is no such line or row.
    """
    line = next((line for line in readme.read_text().splitlines() if line.startswith(claim.start)), None)
    if line is None:
        return ["no such line in README"]
    try:
        return [text for text in claim.says(results.read(claim.page)) if text not in line]
    except LookupError:
        return ["no such row on the page"]


def unclaimed(readme: Path = README) -> list[str]:
    """Rows of the table of README that are in no claim."""
    table = readme.read_text().partition("## Measured")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    return [row for row in rows if not any(row.startswith(claim.start) for claim in CLAIMS)]


def row(data: Data, section: str, **cells: Any) -> Data:
    """The first row of a section that has some cells.

    Raises:
        LookupError: there is none.
    """
    found: list[Data] = [each for each in data[section] if all(each[key] == cell for key, cell in cells.items())]
    return found[0]


def _span(numbers: Iterable[float], form: str = "{:.2f}") -> str:
    """The least and the largest of some numbers."""
    found = sorted(numbers)
    return " to ".join(form.format(number).replace("-", MINUS) for number in (found[0], found[-1]))


# Rows of the table


def _resnet20(rate: str, *, first: bool = False) -> Callable[[Data], Iterable[str]]:
    def says(data: Data) -> Iterable[str]:
        found = row(data, "ResNet-20", codec="waterfill", setting=f"rate {rate}")
        before = row(data, "ResNet-20", codec=ORIGINAL)
        yield f"{found['bytes']:,} bytes, {before['bytes'] / found['bytes']:.1f} times smaller"
        yield f"top-1 {found['top-1 %']:.2f} %" + f" ({before['top-1 %']:.2f} before)" * first

    return says


def _lenet(name: str) -> Callable[[Data], Iterable[str]]:
    def says(data: Data) -> Iterable[str]:
        found = row(data, "rows", network=name)
        yield f"{found['bytes']:,} bytes, {found['times smaller']:.1f} times smaller"
        yield f"top-1 {found['top-1 after %']:.2f} % ({found['top-1 before %']:.2f})"

    return says


def _pruned(data: Data) -> Iterable[str]:
    found = row(data, "Files", network="lenet300")
    yield f"({found['not zero']:,} of {found['of']:,} weights left)"
    yield f"{found['bytes']:,} bytes"
    yield f"top-1 {found['top-1 after %']:.2f} % ({found['top-1 before %']:.2f})"


def _squeezenet(data: Data) -> Iterable[str]:
    found = row(data, "Files", network="squeezenet")
    yield f"{found['bytes']:,} bytes"
    yield f"{found['asked for or published']:,} bytes"


def _stories_file(data: Data) -> Iterable[str]:
    found = row(data, "rows", **{"importance": "row_scale", "asked bit/value": 4.0})
    yield f"{found['bytes']:,} bytes, {32 / found['bit/value']:.1f} times smaller"
    yield f"{found['nats per token']:.3f} nats per token"


def _directory(task: Task, quality: Callable[[Data], str]) -> Callable[[Data], Iterable[str]]:
    def says(data: Data) -> Iterable[str]:
        found = row(data, task.title, method=WATERFILL, setting="rate 3")
        yield f"{found['bytes']:,} bytes, {32 / found['bit/value']:.1f} times smaller"
        yield quality(found)

    return says


# Sentences


def _peers(data: Data) -> Iterable[str]:
    ratios = {
        each["network"]: [100 * float(cell) for key, cell in each.items() if key not in ("network", "codec") and cell]
        for each in data["waterfill / NNCodec"]
        if each["codec"] == "waterfill"
    }
    stories = ratios.pop(STORIES.title)
    names = {6: "six", 7: "seven", 8: "eight"}
    others = _span((ratio for each in ratios.values() for ratio in each), "{:.0f}")
    yield f"{others} % of the bytes of NNCodec's best files without data on {names[len(ratios)]} networks"
    yield f"{_span(stories, '{:.0f}')} % on stories260K"


def _limits(data: Data) -> Iterable[str]:
    gaps = {
        states: max(r["gap"] for r in data["Independent weights"] if (r["source"], r["states"]) == ("Gaussian", states))
        for states in (64, 2048)
    }
    yield f"{gaps[64]:.3f} bit above the rate{DASH}distortion function with 64 states and {gaps[2048]:.3f} with 2,048"
    layers = data["Correlated inputs: layers of all-MiniLM-L6-v2"]
    yield f"({_span(each['gap'] for each in layers if each['rounding'] == '256 states')} bit)"
    one_step = (each["gap"] for each in layers if each["rounding"] == "feedback, one step")
    yield f"one-step feedback lies {_span(one_step, '{:.1f}')} bit above it"


def _transformers(data: Data) -> Iterable[str]:
    for method, form, words in (
        (GPTQ, "{:.1f}", "bits per value less than GPTQ"),
        (SCALAR, "{:.2f}", "less than the same feedback with scalar steps"),
    ):
        tables = [equal(data[task.title], WATERFILL, [method], task.loss) for task in (STORIES, MINILM)]
        less = [each["less"] for table in tables for each in table]
        yield f"{_span((float(each) for each in less if each[0] not in '<>'), form)} {words}"


CLAIMS = (
    Claim("| ResNet-20, CIFAR-10, `rate=2.2`", "peers", _resnet20("2.2", first=True)),
    Claim("| the same, `rate=1.4`", "peers", _resnet20("1.4")),
    Claim("| the same, `rate=1.2`", "peers", _resnet20("1.2")),
    Claim("| LeNet-300-100, MNIST", "lenet", _lenet("lenet300")),
    Claim("| LeNet-5, MNIST", "lenet", _lenet("lenet5")),
    Claim("| LeNet-300-100 after pruning", "sparse", _pruned),
    Claim("| SqueezeNet", "sparse", _squeezenet),
    Claim("| stories260K, bare safetensors file", "stories", _stories_file),
    Claim(
        "| all-MiniLM-L6-v2, directory",
        "transformers",
        _directory(MINILM, lambda found: f"{1 - found[COSINE]:.4f}"[1:]),
    ),
    Claim(
        "| stories260K, directory",
        "transformers",
        _directory(
            STORIES,
            lambda found: f"KL to the original {found[KL]:.3f} nats per token, perplexity {found[PERPLEXITY]:.2f}",
        ),
    ),
    Claim("At equal quality (half a point", "peers", _peers),
    Claim("Independent Gaussian weights in a file", "limits", _limits),
    Claim("As directories of transformers", "transformers", _transformers),
)
"""Every row of the table, and the sentences below it."""
