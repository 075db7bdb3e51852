"""The network that comes back from a file."""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch import nn

import waterfill


def decoded(data: bytes, into: nn.Module) -> nn.Module:
    """Fill a network from the bytes of a file, by way of the disk as a user does; it is given back, to be evaluated.

    Args:
        data: the whole file.
        into: of the same architecture; its values are replaced.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.wf"
        path.write_bytes(data)
        return waterfill.load(path, into=into).eval()
