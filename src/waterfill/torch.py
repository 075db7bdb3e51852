"""Read what waterfill wrote into tensors of PyTorch, as `safetensors.torch` does.

Example:
    >>> from waterfill.torch import load_file
    >>> state = load_file("model.wf", device="cuda")  # doctest: +SKIP
"""

from __future__ import annotations

from pathlib import Path

from waterfill.errors import missing_package

try:
    import torch
    from torch import Tensor

    from waterfill.files import WaterfillFile
    from waterfill.reading import decompress
except ModuleNotFoundError as error:
    raise missing_package(error, "waterfill.torch") from error

__all__ = ["load", "load_file"]


def load_file(
    path: str | Path,
    device: str | torch.device = "cpu",
    *,
    threads: int | None = None,
    max_bytes: int | None = None,
) -> dict[str, Tensor]:
    """All tensors of a file or of a compressed directory by name; tied ones are one tensor.

    Everything is checked before anything is decoded.

    Args:
        path: the file or the directory.
        device: where the tensors are to be.
        threads: how many threads decode; by default as many as there are processors.
        max_bytes: most bytes that the tensors may take when decoded; by default any number.

    Raises:
        FormatError: it cannot be read, is damaged, is nothing that waterfill wrote, or takes too many bytes.
    """
    return _moved(decompress(path, threads=threads, max_bytes=max_bytes), device)


def load(
    data: bytes, device: str | torch.device = "cpu", *, threads: int | None = None, max_bytes: int | None = None
) -> dict[str, Tensor]:
    """The same of the bytes of a file.

    Raises:
        FormatError: they are damaged, no such file, or take too many bytes.
    """
    with WaterfillFile(data, threads=threads, max_bytes=max_bytes) as file:
        file.fetch()
        return _moved(dict(file.tensors()), device)


def _moved(tensors: dict[str, Tensor], device: str | torch.device) -> dict[str, Tensor]:
    """Tensors on a device; tied ones stay one."""
    found = {id(tensor): tensor.to(device) for tensor in tensors.values()}
    return {name: found[id(tensor)] for name, tensor in tensors.items()}
