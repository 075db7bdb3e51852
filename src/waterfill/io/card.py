"""The model card of a compressed directory: `README.md` with what was done to the model, and how to load it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from waterfill.file_system import DISK, is_file
from waterfill.io.configuration import architecture, inside

CARD = "README.md"
_BEGIN, _END = "<!-- waterfill: card -->", "<!-- waterfill: end of card -->"
_REPLACED = ("base_model", "base_model_relation", "model-index")
_REPOSITORY = re.compile(r"([\w.-]{1,96}/)?[\w.-]{1,96}", re.ASCII)
_CACHED = re.compile(r"models--(.+)")
_SENTENCES = "modules.json"
_LOST = (
    "The weights of this model were compressed with [waterfill](https://pypi.org/project/waterfill/) and decompressed "
    "again: they are near those of the base model, but not the same."
)


@dataclass(frozen=True)
class Card:
    """What a model card says of a compression.

    Attributes:
        rate: bits of all files of weights per floating-point value.
        size_bytes: of all files of weights.
        original_bytes: bytes of all tensors before.
        loss: the measured loss with its unit; None without data.
        target: what was asked, by the name of the option.
    """

    rate: float
    size_bytes: int
    original_bytes: int
    loss: str | None
    target: Mapping[str, float]


def write_card(folder: Path, source: Path, card: Card) -> None:
    """Write the model card of a compressed directory, around that of the original.

    Metadata of the original such as its licence and language are kept, and its text comes after what is new.

    Args:
        folder: the compressed directory, with its configuration.
        source: the original.
        card: what to say.

    Raises:
        OSError: it cannot be written.
    """
    config = json.loads((folder / "config.json").read_text("utf-8"))
    blocks, body = _split(_text(source / CARD))
    base = _base(source, config)
    name = base or source.resolve().name
    before = f"\n\n# README of the base model\n\n{body}" if body else "\n"
    lines = [*_metadata(blocks, base), "", _BEGIN, _about(name, card), "", _loading(folder, config, blocks), _END]
    DISK.save(folder / CARD, ("\n".join(lines) + before).encode(errors="replace"))


def restore_card(folder: Path) -> None:
    """Turn the card of a compressed directory into that of a decompressed one; other texts stay as they are.

    Raises:
        OSError: it cannot be written.
    """
    text = _text(folder / CARD)
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if begin and end:
        DISK.save(folder / CARD, f"{before}{_LOST}{after}".encode(errors="replace"))


def _text(path: Path) -> str:
    """The text of a file, in whatever encoding; empty without one."""
    return inside(path, path.parent).read_text("utf-8-sig", errors="replace") if is_file(path) else ""


def _split(text: str) -> tuple[dict[str, str], str]:
    """The YAML blocks before a text by their keys, as they are written, and the text; no blocks where they are odd."""
    found = re.match(r"---[ \t]*\n(.*?)^---[ \t]*(?:\n|\Z)", text, re.DOTALL | re.MULTILINE)
    if found is None:
        return {}, text
    blocks: dict[str, str] = {}
    for line in found[1].splitlines():
        key = re.match(r"([A-Za-z_][\w-]*)[ \t]*:(?=\s|$)", line)
        if key is not None:
            blocks[key[1]] = line
        elif blocks:
            blocks[[*blocks][-1]] += f"\n{line}"
        elif line.strip() and not line.startswith("#"):
            return {}, text
    return blocks, text[found.end() :].lstrip("\n")


def _metadata(blocks: Mapping[str, str], base: str | None) -> list[str]:
    """The YAML lines of the card: those of the original, and what is new."""
    kept = {key: block.rstrip() for key, block in blocks.items() if key not in _REPLACED and key != "tags"}
    kept.setdefault("library_name", "library_name: transformers")
    tags = dict.fromkeys([*_tags(blocks.get("tags", "")), "waterfill", "compressed"])
    relation = [] if base is None else [f"base_model: {json.dumps(base)}", "base_model_relation: quantized"]
    return ["---", *relation, *kept.values(), "tags:", *(f"- {tag}" for tag in tags), "---"]


def _tags(block: str) -> list[str]:
    """The items of a YAML list, quotes and all: of lines with hyphens, or in brackets."""
    inline = re.fullmatch(r"tags[ \t]*:\s*\[(.*)\]\s*", block, re.DOTALL)
    if inline is not None:
        return [item.strip() for item in inline[1].split(",") if item.strip()]
    return re.findall(r"^[ \t]*-[ \t]+(\S.*?)[ \t]*$", block, re.MULTILINE)


def _base(source: Path, config: Mapping[str, Any]) -> str | None:
    """The repository of the original, or what its folder is called; None where that is no name of a repository."""
    named = config.get("_name_or_path")
    folders = source.resolve().parts
    cached = next((found for part in folders if (found := _CACHED.fullmatch(part))), None)
    if isinstance(named, str) and _REPOSITORY.fullmatch(named) and not Path(named).exists():
        return named
    if cached is not None:
        return cached[1].replace("--", "/")
    return folders[-1] if _REPOSITORY.fullmatch(folders[-1]) else None


def _about(name: str, card: Card) -> str:
    """What was done, as a table."""
    asked = ", ".join(f"{option} {amount:g}" for option, amount in card.target.items())
    rows = (
        ("Base model", name),
        ("Rate", f"{card.rate:.3f} bit per value, all files of weights counted (asked: {asked})"),
        ("Weights before", f"{card.original_bytes:,} bytes"),
        ("Weights now", f"{card.size_bytes:,} bytes"),
        ("Measured loss", card.loss or "not measured: no data"),
    )
    lines = [f"# {name}, compressed", "", "Compressed with [waterfill](https://pypi.org/project/waterfill/).", ""]
    return "\n".join([*lines, "| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in rows)])


def _loading(folder: Path, config: Mapping[str, Any], blocks: Mapping[str, str]) -> str:
    """How to load the model, and under which licence it is."""
    module, made = "transformers", ".from_pretrained"
    kind = architecture(config, folder) or "AutoModel"
    if is_file(folder / _SENTENCES):
        module, kind, made = "sentence_transformers", "SentenceTransformer", ""
    kept = "as stated above" if "license" in blocks else "see its files and its page"
    return f"""## Loading

`pip install "waterfill[transformers]"`, then

```python
import waterfill  # first: without it the weights are not found
from {module} import {kind}

model = {kind}{made}("PATH OF THIS DIRECTORY")
```

`waterfill decompress DIRECTORY -o OTHER` makes an ordinary model directory of it.

## Licence

That of the base model ({kept}), whose weights these are in another form."""
