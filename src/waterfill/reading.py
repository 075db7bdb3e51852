"""Open, decompress and load what waterfill wrote: a file, or a directory of a Hugging Face model."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from waterfill import files
from waterfill.bundle import Bundle
from waterfill.errors import UsageError
from waterfill.file_system import is_folder
from waterfill.files import WaterfillFile
from waterfill.models.surroundings import in_ordinary_surroundings
from waterfill.models.torch_module import fill


@in_ordinary_surroundings
def open(path: str | Path, *, threads: int | None = None, max_bytes: int | None = None) -> WaterfillFile | Bundle:
    """Open a file or a compressed directory without decoding it: a mapping from names to tensors.

    Args:
        path: the file or the directory.
        threads: how many threads decode.
        max_bytes: most bytes that the tensors may take when decoded; by default any number.

    Raises:
        FormatError: it cannot be read, is damaged, is nothing that waterfill wrote, or takes too many bytes.
    """
    kind = Bundle if is_folder(Path(path)) else WaterfillFile
    return kind(path, threads=threads, max_bytes=max_bytes)


@in_ordinary_surroundings
def decompress(path: str | Path, *, threads: int | None = None, max_bytes: int | None = None) -> dict[str, Tensor]:
    """All tensors of a file or of a compressed directory by name; tied ones are one tensor.

    Everything is checked before anything is decoded. `waterfill.bundle.write_plain` writes a directory without holding
    all of it.

    Args:
        path: the file or the directory.
        threads: how many threads decode.
        max_bytes: most bytes that the tensors may take when decoded; by default any number.

    Raises:
        FormatError: it cannot be read, is damaged, is nothing that waterfill wrote, or takes too many bytes.
    """
    if not is_folder(Path(path)):
        return files.decompress(path, threads=threads, max_bytes=max_bytes)
    with Bundle(path, threads=threads, max_bytes=max_bytes) as bundle:
        bundle.fetch()
        return dict(bundle.tensors())


@in_ordinary_surroundings
def load(
    path: str | Path,
    into: nn.Module | None = None,
    *,
    threads: int | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    resident: bool = False,
    cache_bytes: int | None = None,
    max_bytes: int | None = None,
) -> nn.Module:
    """Fill a model with the tensors of a file, or make the model of a compressed directory.

    Args:
        path: the file or the directory.
        into: the model to fill, in place; names and shapes must be the same, and nothing is changed when anything is
            wrong. For a directory it may be left out: the class that its configuration names is made, by transformers.
        threads: how many threads decode.
        dtype: the type of the new model; by default that of the original.
        device: where the new model is; by default the processor.
        resident: leave the blocks of the new model compressed in memory: each is decoded when it runs; see
            `waterfill.resident`.
        cache_bytes: how many bytes of their decoded weights may stay; by default two of the largest block.
        max_bytes: most bytes that the tensors may take when decoded; by default any number.

    Returns:
        The model, in evaluation mode where it is new.

    Raises:
        FormatError: the file or directory cannot be read, is damaged, or is nothing that waterfill wrote.
        UsageError: arguments contradict each other.
        WaterfillError: names or shapes differ.
        UnsupportedModelError: transformers does not know the class, or is not installed.
    """
    if into is not None and (dtype is not None or device is not None or resident):
        raise UsageError("dtype, device and resident are of a new model, but into= was given; leave one out.")
    if cache_bytes is not None and not resident:
        raise UsageError("cache_bytes is for a model whose blocks stay compressed; expected resident=True with it.")
    if not is_folder(Path(path)):
        if into is None:
            raise UsageError(f"{path} is a file, which does not say what its model is; give the model: into=model.")
        return files.load(path, into, threads=threads, max_bytes=max_bytes)
    if into is not None:
        with Bundle(path, threads=threads, max_bytes=max_bytes) as bundle:
            _fill(into, bundle)
        return into
    if max_bytes is not None:
        Bundle(path, max_bytes=max_bytes).close()
    from waterfill.integrations.loading import from_directory
    from waterfill.integrations.options import Options

    place = torch.device("cpu" if device is None else device)
    return from_directory(Path(path), dtype, Options(resident, cache_bytes, place, threads))


def _fill(model: nn.Module, bundle: Bundle) -> None:
    """Fill a model from a directory; where names are not those of the checkpoint, transformers converts them."""
    bundle.fetch()
    if set(bundle) != set(model.state_dict()) and hasattr(type(model), "from_pretrained"):
        from waterfill.integrations.loading import like

        fill(model, like(model, bundle.directory).state_dict())
    else:
        fill(model, dict(bundle.tensors()))
