"""Seeds: files of every reconstruction and basis, and directories of both formats."""

import json
import re
from pathlib import Path

import safetensors.torch
import torch

from fuzz.anatomy import made_plain, put_together, take_apart
from waterfill.bundle import BundleWriter

GOLDEN = Path(__file__).parents[1] / "golden"
MIXED = Path(__file__).parent / "mixed.wf"
"""Every type and origin of a tensor, in many chunks."""


TIED = "head"
"""The tensor of seeds that is tied to another one."""


def files():
    """Bytes of files by name."""
    found = {path.stem: path.read_bytes() for path in [*sorted(GOLDEN.glob("*.wf")), MIXED]}
    return found | {"plain mixed": made_plain(found["mixed"])}


def directories(folder):
    """Files of directories, by the name of the directory: each a path and its bytes."""
    found = {"format 1": contents(GOLDEN / "directory")}
    seeds = files()
    groups = {
        "rest": seeds["fine"],
        "layers.0": renamed(seeds["down"], "layers.0."),
        "layers.1": renamed(seeds["sums"], "layers.1."),
    }
    for name, size in (("one shard", 1 << 30), ("two shards", 3000)):
        found[name] = written(folder / name, groups, {TIED: "5.weight"}, size)
    return found


def written(folder, groups, tied, shard_bytes):
    """The files of a directory with these payloads."""
    source = folder.with_name(f"source of {folder.name}")
    source.mkdir(exist_ok=True)
    safetensors.torch.save_file({"w": torch.zeros(1)}, source / "model.safetensors")
    config = {"model_type": "none", "architectures": ["None"], "hidden_size": 4}
    (source / "config.json").write_text(json.dumps(config))
    with BundleWriter(folder, source, force=True, shard_bytes=shard_bytes) as writer:
        for name, payload in groups.items():
            writer.add(name, payload)
        writer.finish(tied, {"rate": 4.0})
    return contents(folder)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def renamed(data, prefix):
    """A file whose tensors have a prefix."""
    parts = take_apart(data)
    for line in parts.directory["entries"]:
        line[0] = prefix + line[0]
        if len(line) > 4 and line[3] in "=m":
            line[4] = prefix + line[4]
    return put_together(parts)


def name_of_file(text):
    """A text as a part of a name of a file."""
    return re.sub(r"[^\w.-]+", "-", text)
