"""The digest of a compressed directory: all that decides which tensors come back. Every file of payloads names it.

```
config.json   architectures, model_type, sizes --+
              weights, dtype, groups, ties ------+--> SHA-256, 128 bits of it, under "digest" in the metadata of shards
payloads      header and list of tensors --------+
```
A payload that is lost, added, exchanged or written anew, or a configuration that asks for another model, changes it.
It finds accidents and careless edits. It is no signature: who writes all of a directory writes its digest, too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from waterfill.codec.container import HEADER
from waterfill.codec.opened import FilePart

KEY = "digest"
"""Of the metadata of a shard."""

_MODEL = ("architectures", "model_type")
_OTHERS = ("token", "output_", "return_", "use_cache")
"""Parts of keys that say nothing of tensors."""


def payload_digest(payload: bytes | memoryview | FilePart) -> str:
    """Digest of the header and the directory of a `.wf` file, which has the checksums of all the rest.

    Args:
        payload: the whole file, or what there is of it.
    """
    header = bytes(payload[: HEADER.size]).ljust(HEADER.size, b"\0")
    size = HEADER.unpack(header)[3]
    return hashlib.sha256(payload[: HEADER.size + size]).hexdigest()


def directory_digest(config: Mapping[str, Any], described: Mapping[str, Any], payloads: Sequence[str]) -> str:
    """Digest of a directory.

    Args:
        config: what its `config.json` says; what it says of quantization is not looked at.
        described: `weights`, `dtype`, `groups` and `tied` of its `quantization_config`.
        payloads: the digests of all payloads, in the order of the groups.
    """
    covered = {
        "model": dict(_model(config)),
        "weights": described["weights"],
        "dtype": described["dtype"],
        "groups": [[group["name"], group["tensor"], group["bytes"]] for group in described["groups"]],
        "payloads": list(payloads),
        "tied": dict(described["tied"]),
    }
    text = json.dumps(covered, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _model(config: Mapping[str, Any], name: str = "") -> Iterator[tuple[str, Any]]:
    """What a configuration, and those in it, say of the tensors that a model has."""
    for key, value in config.items():
        if key in _MODEL or (_is_size(value) and not any(word in key for word in _OTHERS)):
            yield f"{name}.{key}", value
        elif key.endswith("_config") and key != "quantization_config" and isinstance(value, dict):
            yield from _model(value, f"{name}.{key}")


def _is_size(value: object) -> bool:
    """Whether something is a whole number or a boolean, or a list of these."""
    return isinstance(value, int) or (isinstance(value, list) and all(isinstance(each, int) for each in value))
