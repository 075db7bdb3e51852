"""Hugging Face model directories without a download: stories260K, all-MiniLM-L6-v2, and a billion random weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import hf_tokenizer
import minilm
from waterfill import zoo

HEADS, KEY_HEADS, LAYERS, WIDTH, INNER, VOCABULARY = 8, 4, 5, 64, 172, 512
"""Sizes of stories260K."""

BILLION = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
"""The shape of TinyLlama 1.1B."""

SHARD_BYTES = 500_000_000
SPREAD = 0.02
"""Standard deviation of the random weights of the middle layer."""


# stories260K

PLACES = {
    "attention_norm": "input_layernorm",
    "wq": "self_attn.q_proj",
    "wk": "self_attn.k_proj",
    "wv": "self_attn.v_proj",
    "wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "w1": "mlp.gate_proj",
    "w2": "mlp.down_proj",
    "w3": "mlp.up_proj",
}


def stories(into: Path) -> Path:
    """Write the directory of stories260K, and see that its logits and tokens are right."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict(_stories_tensors(), strict=False)
    model.save_pretrained(into)
    hf_tokenizer.write(into)
    check_stories(into)
    return into


def _stories_tensors() -> dict[str, Tensor]:
    found = {}
    for name, tensor in load_file(zoo.data_folder() / "models" / "lm_stories260k.safetensors").items():
        part = name.split(".")[-2]
        heads = {"wq": HEADS, "wk": KEY_HEADS}.get(part)
        found[_stories_name(name)] = tensor if heads is None else halves(tensor, heads)
    return found | {"lm_head.weight": found["model.embed_tokens.weight"]}


def _stories_name(name: str) -> str:
    if name.startswith("layers."):
        _, layer, part, _ = name.split(".")
        return f"model.layers.{layer}.{PLACES[part]}.weight"
    return {"norm.weight": "model.norm.weight", "tok_embeddings.weight": "model.embed_tokens.weight"}[name]


def halves(weight: Tensor, heads: int) -> Tensor:
    """Rows of a query or key matrix whose rotation turns neighbours, for one that turns the halves of a head.

    Args:
        weight: [heads * width, in].
        heads: how many; the even rows of each come first.
    """
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(weight.shape).contiguous()


def check_stories(folder: Path) -> None:
    """See that logits are those of the network of the zoo, and tokens those of the data set."""
    from transformers import AutoModelForCausalLM

    tokens, _ = next(iter(zoo.stories_test(samples=4)))
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(folder)(tokens).logits
        far = float((found - zoo.pretrained("stories260k")(tokens)).abs().max())
    if far > 1e-4:
        raise ValueError(f"Logits are up to {far} from those of the network; expected at most 0.0001.")
    _check_tokens(folder)


def _check_tokens(folder: Path) -> None:
    from transformers import AutoTokenizer

    read, text = AutoTokenizer.from_pretrained(folder), zoo.data_folder() / "text"
    told = (text / "tinystories_sample.txt").read_text("utf-8").split("<|endoftext|>\n")
    data = np.load(text / "stories260k_tokens.npz")
    expected = np.split(data["tokens"], data["story_starts"][1:])
    for number, (story, tokens) in enumerate(zip(told, expected, strict=True)):
        story = story.strip()
        if read(story)["input_ids"] != tokens.tolist() or read.decode(tokens[1:].tolist()) != story:
            raise ValueError(f"Story {number} has other tokens; expected those of stories260k_tokens.npz.")


# all-MiniLM-L6-v2


def sentences(into: Path) -> Path:
    """Copy the directory of all-MiniLM-L6-v2, and see that its embeddings and tokens are right."""
    source = minilm.folder()
    if source is None:
        raise FileNotFoundError(f"The network is not installed: {minilm.INSTALL}.")
    shutil.copytree(source, into, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))
    check_sentences(into)
    return into


def check_sentences(folder: Path) -> None:
    """See that three sentences have the published cosines, and that tokens are those of `minilm.tokenize`."""
    from transformers import AutoModel, AutoTokenizer

    read = AutoTokenizer.from_pretrained(folder)
    for sentence in [*minilm.EXPECTED, *minilm.sentences(50)]:
        if read(sentence)["input_ids"] != minilm.tokenize(sentence):
            raise ValueError(f"{sentence!r} has other tokens; expected those of its vocabulary.")
    batch = read(list(minilm.EXPECTED), padding=True, return_tensors="pt")
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder)(**batch).last_hidden_state
    found = torch.nn.functional.normalize(pooled(states, batch["attention_mask"]), dim=-1)
    cosines = (found @ found.T)[[0, 0, 1], [1, 2, 2]]
    if not torch.allclose(cosines, torch.tensor(minilm.COSINES), atol=2e-4):
        raise ValueError(f"Sentences have the cosines {cosines.tolist()}; expected {minilm.COSINES}.")


def pooled(states: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens that are there: [batch, time, width] and [batch, time] to [batch, width]."""
    share = mask[..., None].to(states.dtype)
    return (states * share).sum(1) / share.sum(1)


# Random weights


def billion(into: Path, layers: int = BILLION["num_hidden_layers"]) -> Path:
    """Write a checkpoint of random bfloat16 weights in shards, never more than one of them in memory.

    Args:
        into: the directory.
        layers: how many; 22 are 1.1 billion weights.
    """
    from transformers import LlamaConfig

    into.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(**{**BILLION, "num_hidden_layers": layers, "architectures": ["LlamaForCausalLM"]})
    config.dtype = "bfloat16"
    config.save_pretrained(into)
    shards = list(_shards(layers))
    places: dict[str, str] = {}
    for number, shapes in enumerate(shards):
        file = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        save_file(_random(shapes, number), into / file, {"format": "pt"})
        places |= dict.fromkeys(shapes, file)
    total = sum(_bytes(shape) for shapes in shards for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (into / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return into


def billion_values(layers: int = BILLION["num_hidden_layers"]) -> int:
    """How many weights that checkpoint has."""
    return sum(_bytes(shape) // 2 for _, shape in _shapes(layers))


Shapes = dict[str, tuple[int, ...]]


def _shapes(layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, inner, words = BILLION["hidden_size"], BILLION["intermediate_size"], BILLION["vocab_size"]
    keys = width // BILLION["num_attention_heads"] * BILLION["num_key_value_heads"]
    yield "model.embed_tokens.weight", (words, width)
    for layer in range(layers):
        inside: dict[str, tuple[int, ...]] = {
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
        yield from ((f"model.layers.{layer}.{part}.weight", shape) for part, shape in inside.items())
    yield "model.norm.weight", (width,)
    yield "lm_head.weight", (words, width)


def _shards(layers: int) -> Iterator[Shapes]:
    """The tensors in order, a shard full at a time."""
    shard: Shapes = {}
    for name, shape in _shapes(layers):
        if shard and sum(map(_bytes, shard.values())) + _bytes(shape) > SHARD_BYTES:
            yield shard
            shard = {}
        shard[name] = shape
    yield shard


def _bytes(shape: tuple[int, ...]) -> int:
    return 2 * int(np.prod(shape))


def _random(shapes: Shapes, seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {name: _weight(name, shape, generator) for name, shape in shapes.items()}


def _weight(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Norms are ones; matrices are normal, from half as wide to twice as wide with the number of the layer."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    layer = int(name.split(".")[2]) if ".layers." in name else BILLION["num_hidden_layers"] / 2
    spread = SPREAD * 4 ** (layer / BILLION["num_hidden_layers"] - 0.5)
    return torch.randn(shape, generator=generator).mul_(spread).to(torch.bfloat16)
