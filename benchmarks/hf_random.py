"""Llama directories of random weights: for what time and memory depend on, which is the shape."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

Shape = Mapping[str, int]
"""Sizes of a Llama, as its configuration names them."""

BILLION = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
}
"""The shape of TinyLlama 1.1B."""

FEW_WORDS = 512
"""Of networks of one block, so that nearly all of their weights are in it."""

BILLION_BLOCK = BILLION | {"num_hidden_layers": 1, "vocab_size": FEW_WORDS}
"""A block of it, 44 million weights."""

SMALL_BLOCK = BILLION_BLOCK | {
    "hidden_size": 1024,
    "intermediate_size": 2560,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
}
"""A block of 11 million weights."""

LARGE_BLOCK = BILLION_BLOCK | {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
"""A block of Llama 8B, 218 million weights."""

SHARD_BYTES = 500_000_000
SPREAD = 0.02
"""Standard deviation of the random weights of the middle layer."""

Shapes = dict[str, tuple[int, ...]]


def directory(into: Path, shape: Shape) -> Path:
    """Write a checkpoint of random bfloat16 weights in shards, never more than one of them in memory.

    Args:
        into: the directory.
        shape: of the network.
    """
    from transformers import LlamaConfig

    into.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(**shape, rms_norm_eps=1e-5, tie_word_embeddings=False, architectures=["LlamaForCausalLM"])
    config.dtype = "bfloat16"
    config.save_pretrained(into)
    shards = list(_shards(shape))
    places: dict[str, str] = {}
    for number, shapes in enumerate(shards):
        file = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        save_file(_random(shapes, number, shape["num_hidden_layers"]), into / file, {"format": "pt"})
        places |= dict.fromkeys(shapes, file)
    total = sum(_bytes(each) for shapes in shards for each in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (into / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return into


def values(shape: Shape) -> int:
    """How many weights that checkpoint has."""
    return sum(_bytes(each) // 2 for _, each in _shapes(shape))


def windows(shape: Shape, count: int, length: int, seed: int = 0) -> list[Tensor]:
    """Random tokens, int64 [1, length] each."""
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randint(shape["vocab_size"], (count, length), generator=generator).split(1))


def _shapes(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, inner, words = shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"]
    keys = width // shape["num_attention_heads"] * shape["num_key_value_heads"]
    yield "model.embed_tokens.weight", (words, width)
    for layer in range(shape["num_hidden_layers"]):
        inside: Shapes = {
            "self_attn.q_proj": (width, width),
            "self_attn.k_proj": (keys, width),
            "self_attn.v_proj": (keys, width),
            "self_attn.o_proj": (width, width),
            "mlp.gate_proj": (inner, width),
            "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner),
            "input_layernorm": (width,),
            "post_attention_layernorm": (width,),
        }
        yield from ((f"model.layers.{layer}.{part}.weight", each) for part, each in inside.items())
    yield "model.norm.weight", (width,)
    yield "lm_head.weight", (words, width)


def _shards(shape: Shape) -> Iterator[Shapes]:
    """The tensors in order, a shard full at a time."""
    shard: Shapes = {}
    for name, each in _shapes(shape):
        if shard and sum(map(_bytes, shard.values())) + _bytes(each) > SHARD_BYTES:
            yield shard
            shard = {}
        shard[name] = each
    yield shard


def _bytes(shape: tuple[int, ...]) -> int:
    return 2 * int(np.prod(shape))


def _random(shapes: Shapes, seed: int, layers: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: _weight(name, shape, layers, generator) for name, shape in shapes.items()}


def _weight(name: str, shape: tuple[int, ...], layers: int, generator: torch.Generator) -> Tensor:
    """Norms are ones; matrices are normal, from half as wide to twice as wide with the number of the layer."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    layer = int(name.split(".")[2]) if ".layers." in name and layers > 1 else layers / 2
    spread = SPREAD * 4 ** (layer / layers - 0.5)
    return torch.randn(shape, generator=generator).mul_(spread).to(torch.bfloat16)
