"""From a compressed directory back to an ordinary one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from waterfill.errors import WaterfillError
from waterfill.file_system import DISK
from waterfill.io.card import restore_card
from waterfill.io.directory import DirectoryReader
from waterfill.io.folder import NewFolder, copy_companions
from waterfill.io.shards import SHARD_BYTES, Planned, ShardWriter


def write_plain(
    bundle: DirectoryReader[Any], out: str | Path, *, force: bool = False, shard_bytes: int = SHARD_BYTES
) -> int:
    """Write all tensors as ordinary safetensors, with the original configuration and the other files.

    One group is in memory at a time. The directory appears whole or not at all.

    Args:
        bundle: the open compressed directory.
        out: the directory to write.
        force: replace a model directory that exists.
        shard_bytes: with tensors of so many bytes and more there are several shards, each below.

    Returns:
        Bytes of all shards and their index.

    Raises:
        FormatError: a payload is damaged; nothing is left.
        WaterfillError: `out` cannot be written, or a tensor has a type that safetensors does not know.
    """
    shapes, types = bundle.shapes, bundle.types
    planned = [Planned(name, shapes[name], types[name]) for group in bundle.groups for name in bundle.names(group)]
    config = _unquantized(bundle.config)
    with NewFolder(Path(out), source=bundle.directory, force=force) as folder:
        try:
            with ShardWriter(folder.path, planned, shard_bytes) as shards:
                for group in bundle.groups:
                    for name, tensor in bundle.group(group).items():
                        shards.write(name, [bundle.elements(tensor)])
                size = shards.finish()
            copy_companions(bundle.directory, folder.path)
            restore_card(folder.path)
            DISK.save(folder.path / "config.json", f"{json.dumps(config, indent=2)}\n".encode())
        except OSError as error:
            raise WaterfillError(f"Writing {out} failed: {error.strerror}; nothing was written.") from error
        folder.commit()
    return size


def _unquantized(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without what it says of quantization, wherever `quantization` looks for it."""
    found = {key: value for key, value in config.items() if key != "quantization_config"}
    if isinstance(found.get("text_config"), dict):
        found["text_config"] = _unquantized(found["text_config"])
    return found
