"""Small directories of Hugging Face models, and compressed ones that are made from them without the search."""

import json
import re
import tempfile
from pathlib import Path

import safetensors.torch
import torch

import waterfill
from waterfill.bundle import BundleWriter, Checkpoint

LLAMA = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


def payload(tensors):
    """The bytes of a `.wf` file, of about four bits per value and what small files cost besides."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "group.safetensors"
        safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        size = 400 + sum(tensor.numel() for tensor in tensors.values()) // 2
        return waterfill.compress(path, size_bytes=size).data


def group_of(name):
    found = re.match(r"(.*?\.\d+)\.", name)
    return "rest" if found is None else found[1]


def compressed(source, out, *, tied=None, group=group_of, split=lambda name, tensor: {name: tensor}, **writing):
    """Compress a directory; `split` cuts a tensor into entries."""
    checkpoint, tied = Checkpoint(source), tied or {}
    groups = {}
    for name in checkpoint:
        if name not in tied:
            groups.setdefault(group(name), []).append(name)
    with BundleWriter(out, source, **writing) as writer:
        for key, names in groups.items():
            writer.add(key, payload({k: v for name in names for k, v in split(name, checkpoint[name]).items()}))
        writer.finish(tied, {"rate": 4.0})
    return out


def saved(model, folder):
    """A model of transformers as a directory."""
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):  # norms and biases too are different everywhere
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    model.save_pretrained(folder)
    return folder


def original(folder, tensors, config=None, **files):
    """A directory with these tensors in one shard, and files of these texts."""
    folder.mkdir(parents=True)
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "none"} if config is None else config))
    for name, text in files.items():
        (folder / name.replace("__", "/")).parent.mkdir(exist_ok=True)
        (folder / name.replace("__", "/")).write_text(text)
    return folder
