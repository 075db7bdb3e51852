"""State dicts without their module: sorted into an inventory, put together from it, read and written as safetensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import safetensors
import torch
from torch import Tensor

from waterfill.errors import FormatError, UnsupportedModelError, WaterfillError
from waterfill.file_system import is_folder
from waterfill.io import assembly
from waterfill.io.arrays import STORAGE
from waterfill.io.tensors import save_arrays
from waterfill.models.arrays import array_of, dtype_name, tensor_of
from waterfill.models.patterns import excluded, listed
from waterfill.records import (
    Coded,
    Entry,
    Exact,
    Floats,
    Inventory,
    Layout,
    NormMean,
    NormVariance,
    Origin,
    Tied,
    Weight,
)

CODED_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Types whose values are quantized."""

_EXACT_DTYPES = {
    "bool": "boolean tensor",
    **dict.fromkeys(("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"), "integer tensor"),
    **dict.fromkeys(("complex32", "complex64", "complex128"), "complex tensor"),
    **dict.fromkeys(
        ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"), "8-bit float tensor"
    ),
}
_FLOAT32_TINY = float(np.finfo(np.float32).tiny)

LARGEST = 2.0**92
"""Of the magnitudes of a tensor that is quantized: the largest step of a file is 2^93.75."""

Matrices: TypeAlias = Callable[[str], Floats] | Mapping[str, Floats]
"""The values [out, in] of every coded entry, by name."""


# Sorting


def origin_of(name: str, tensor: Tensor, layout: Layout) -> Coded | Exact:
    """Say whether a tensor is quantized or stored without loss.

    Args:
        name: its name, for the message.
        tensor: the tensor.
        layout: how it is read as a matrix where it is quantized.

    Returns:
        `Exact` for integers, booleans, complex and 8-bit floats, for tensors without elements, with values that no
        step reaches, or all of whose values float32 takes for zero or nearly so; `Coded` for everything else.

    Raises:
        UnsupportedModelError: no file can hold values of its type, or it is sparse.
    """
    dtype = dtype_name(tensor.dtype)
    if tensor.layout is not torch.strided:
        raise UnsupportedModelError(
            f"Tensor {name!r} has the layout {tensor.layout}; expected a dense tensor. Convert it with to_dense()."
        )
    if tensor.dtype not in CODED_DTYPES and dtype not in _EXACT_DTYPES:
        raise UnsupportedModelError(
            f"Tensor {name!r} has the type {dtype}, which no file can hold; expected floating-point, complex, integer "
            "or boolean values. Convert it first, a quantized tensor with dequantize()."
        )
    if tensor.dtype not in CODED_DTYPES:
        return Exact(_EXACT_DTYPES[dtype])
    if tensor.numel() == 0:
        return Exact("no elements")
    largest = max(abs(float(end)) for end in tensor.detach().aminmax())
    if LARGEST < largest < math.inf:
        return Exact(f"values up to {largest:.2g}, beyond what steps reach")
    if 0 < largest < _FLOAT32_TINY and tensor.dtype == torch.float64:
        return Exact(f"values up to {largest:.2g}, below the range of float32")
    return Coded(layout)


def weight_of(name: str, tensor: Tensor, layout: Layout) -> Weight:
    """Bring a floating-point tensor on any device into normal form; the values are copied.

    Raises:
        WaterfillError: a value is NaN or infinite.
    """
    bad = tensor.isfinite().logical_not()
    if bool(bad.any()):
        first = bad.nonzero()[0].tolist()
        raise WaterfillError(
            f"Tensor {name!r} {list(tensor.shape)} has {int(bad.sum())} values that are NaN or infinite, the first at "
            f"index {first}; expected finite values. Repair the checkpoint, or exclude {name!r} to store it as it is."
        )
    values = tensor.detach().to("cpu", torch.float32, copy=True).contiguous().numpy()
    return Weight(name, layout.to_matrix(values), layout)


def collect(
    tensors: Mapping[str, Tensor], origins: Mapping[str, Origin], folded: Mapping[str, Weight] | None = None
) -> Inventory:
    """Build the inventory of a state dict whose origins are decided.

    Args:
        tensors: the state dict.
        origins: one for every name.
        folded: the weights that are not the tensors themselves: scale and shift of folded norms.

    Returns:
        An inventory that shares no memory with `tensors`, in the same order.

    Raises:
        WaterfillError: a value to be quantized is NaN or infinite.
    """
    folded = folded or {}
    weights: dict[str, Weight] = {}
    exact: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match origins[name]:
            case Coded(layout):
                weights[name] = folded[name] if name in folded else weight_of(name, tensor, layout)
            case NormVariance() | NormMean():
                weights[name] = folded[name]
            case Exact():
                exact[name] = tensor.detach().to("cpu", copy=True).contiguous()
    entries = tuple(Entry(n, tuple(t.shape), dtype_name(t.dtype), origins[n]) for n, t in tensors.items())
    return Inventory(entries, weights, exact)


# Assembling


def assemble(entries: Iterable[Entry], matrices: Matrices, exact: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Build a state dict from its entries: the inverse of an inventory, without a module, the same bits everywhere.

    Args:
        entries: what there is, in order.
        matrices: float32 values [out, in] by name, for every entry of origin `Coded`, `NormVariance` (the scale) and
            `NormMean` (the shift).
        exact: the tensors of origin `Exact`, by name.

    Yields:
        Name and tensor of every entry, one at a time; a tied entry is the same object as the one it is tied to. A
        tensor may share the memory of its matrix.
    """
    return assembly.assemble(entries, _getter(matrices), exact.__getitem__, tensor_of)


def assemble_one(name: str, entries: Iterable[Entry], matrices: Matrices, exact: Mapping[str, Tensor]) -> Tensor:
    """Build one tensor of a state dict; only the matrices it needs are asked for.

    Args:
        name: which entry; for a tied one, the tensor that it is tied to.
        entries: what there is.
        matrices: as in `assemble`.
        exact: as in `assemble`.

    Raises:
        WaterfillError: there is no such entry.
    """
    known = {entry.name: entry for entry in entries}
    if name not in known:
        raise WaterfillError(f"There is no tensor {name!r}; expected one of {listed(known)}. Choose one of them.")
    entry = known[name]
    original = known[entry.origin.to] if isinstance(entry.origin, Tied) else entry
    return assembly.assembled(original, _getter(matrices), exact.__getitem__, tensor_of)


def _getter(matrices: Matrices) -> Callable[[str], Floats]:
    return matrices if callable(matrices) else matrices.__getitem__


# Files

_COMPRESSED_MAGIC = b"\x89WFL\r\n\x1a\n"
_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_MAGICS = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))
_PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
_MAX_HEADER_BYTES = 100_000_000


def values_of(inventory: Inventory, changed: Mapping[str, Floats] | None = None) -> dict[str, Tensor]:
    """The state dict that an inventory tells of.

    Args:
        inventory: of a model.
        changed: matrices in the place of its own, by name.
    """
    matrices = {name: weight.matrix for name, weight in inventory.weights.items()}
    return dict(assemble(inventory.entries, {**matrices, **(changed or {})}, inventory.exact))


def read(path: str | Path, *, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Inventory:
    """Read a bare safetensors file, whose module is not known.

    Tensors with two axes and more are flattened after the first, the others are one row; nothing is folded or tied.
    Masks of zeros and ones are stored without loss, where no pattern includes them.

    Args:
        path: the file.
        include: name patterns; where there are any, only what matches is quantized.
        exclude: name patterns of what is stored without loss.

    Returns:
        An inventory with its entries sorted by name.

    Raises:
        WaterfillError: the file cannot be read, or a value is NaN or infinite.
        FormatError: the file is damaged or of another kind; for a pickle the text has the line that converts it.
    """
    tensors = load_tensors(path)
    origins: dict[str, Origin] = {n: origin_of(n, t, Layout(tuple(t.shape))) for n, t in tensors.items()}
    if len(include) == 0:
        origins |= {name: Exact("zeros and ones, stored exactly") for name in tensors if _is_mask(tensors[name])}
    for name, reason in excluded(dict(zip(tensors, tensors, strict=True)), include, exclude).items():
        if isinstance(origins[name], Coded):
            origins[name] = Exact(reason)
    return collect(tensors, origins)


def _is_mask(tensor: Tensor) -> bool:
    """Whether a tensor has zeros and ones, both, and nothing else."""
    if tensor.dtype not in CODED_DTYPES or tensor.numel() < 2:
        return False
    is_one = tensor == 1
    return bool((is_one | (tensor == 0)).all()) and 0 < int(is_one.sum()) < tensor.numel()


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, sorted by name.

    Raises:
        WaterfillError: the file is missing or cannot be opened.
        FormatError: the file is damaged or of another kind; for a pickle the text has the line that converts it.
    """
    path = Path(path)
    _check_kind(path, _first_bytes(path, 9))
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in sorted(file.keys())}
    except safetensors.SafetensorError as error:
        raise FormatError(
            f"Weights file {path} is not a whole safetensors file ({error}); expected one that "
            "safetensors.torch.save_file wrote. Copy or download it again."
        ) from error
    except (KeyError, AttributeError) as error:
        raise FormatError(
            f"Weights file {path} has values of the type {error}, which this version of safetensors cannot give to "
            "PyTorch; expected float, integer or boolean values. Convert them, or upgrade safetensors."
        ) from error
    except OSError as error:
        raise WaterfillError(
            f"Weights file {path} cannot be read ({error}); expected an ordinary safetensors file. Name another one."
        ) from error


def _first_bytes(path: Path, count: int) -> bytes:
    if is_folder(path):
        raise WaterfillError(f"Weights {path} is a folder; expected a .safetensors file. Name a file inside it.")
    try:
        with path.open("rb") as file:
            return file.read(count)
    except FileNotFoundError as error:
        raise WaterfillError(f"Weights file {path} does not exist; expected a .safetensors file. Check it.") from error
    except OSError as error:
        raise WaterfillError(
            f"Weights file {path} cannot be read ({error.strerror}); check its permissions."
        ) from error


def _check_kind(path: Path, head: bytes) -> None:
    """Refuse a file that by its first nine bytes or its suffix is plainly no safetensors file."""
    if head.startswith(_COMPRESSED_MAGIC):
        raise FormatError(
            f"Weights file {path} is compressed already; expected a .safetensors file. Decompress it first: "
            f"waterfill decompress {path} -o {path.with_suffix('.safetensors')}"
        )
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") <= _MAX_HEADER_BYTES:
        return
    if head.startswith((_ZIP_MAGIC, *_PICKLE_MAGICS)) or path.suffix.lower() in _PICKLE_SUFFIXES:
        raise FormatError(
            f"Weights file {path} is a pickle, which can run any code when it is loaded; expected a .safetensors file. "
            "Convert it once, in Python in its folder, with torch and safetensors.torch imported: "
            f'safetensors.torch.save_file(torch.load("{path.name}", weights_only=True), '
            f'"{path.with_suffix(".safetensors").name}")'
        )


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], *, force: bool = True) -> None:
    """Write a safetensors file, whole or not at all; tensors that share memory are written each on its own.

    Args:
        path: where to write.
        tensors: by name, on any device, of any strides.
        force: replace a file that exists; otherwise it is refused.

    Raises:
        WaterfillError: a tensor has a type that safetensors does not know, or the file cannot be written.
    """
    for name, tensor in tensors.items():
        if dtype_name(tensor.dtype) not in STORAGE:
            raise WaterfillError(
                f"Tensor {name!r} has the type {dtype_name(tensor.dtype)}, which safetensors does not know; expected "
                "float, integer, boolean or complex64 values. Convert or leave out the tensor."
            )
    arrays = {name: array_of(tensor.detach().cpu().contiguous()) for name, tensor in tensors.items()}
    save_arrays(path, arrays, force=force)
