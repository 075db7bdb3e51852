"""Keep programs without waterfill from taking a compressed directory for one whose weights are merely missing.

transformers skips a `quant_method` that it does not know with a warning, finds none of the tensors that it looks for,
and goes on with random values. So the payloads do not have the names that it looks for: under these are indexes of a
file that does not exist. It stops there, with an error that has the name of that file, which says what to do. With
waterfill, the configuration sends it to the payloads.
"""

from __future__ import annotations

import json
from pathlib import Path

from waterfill.file_system import DISK
from waterfill.io.shards import INDEX

_NOTE = "The weights are compressed: run 'import waterfill' in Python before from_pretrained."
_INDEXES = {
    INDEX: "import-waterfill-first.safetensors",
    "pytorch_model.bin.index.json": "import-waterfill-first.bin",
}
"""Every index that transformers looks for, and the missing file that it names."""


def write_guards(folder: Path) -> None:
    """Write the indexes that stop a program without waterfill.

    Raises:
        OSError: one cannot be written.
    """
    for name, missing in _INDEXES.items():
        index = {"metadata": {"total_size": 0, "note": _NOTE}, "weight_map": {"import waterfill": missing}}
        DISK.save(folder / name, f"{json.dumps(index, indent=2)}\n".encode())
