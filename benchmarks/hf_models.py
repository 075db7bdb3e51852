"""Hugging Face model directories without a download: stories260K and all-MiniLM-L6-v2."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

import hf_tokenizer
import minilm
from waterfill import zoo

HEADS, KEY_HEADS, LAYERS, WIDTH, INNER, VOCABULARY = 8, 4, 5, 64, 172, 512
"""Sizes of stories260K."""


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
