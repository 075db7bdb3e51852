"""What readers make of a file or a directory, and whether they may."""

import json
import math
import resource
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import slow_decoder

from waterfill.bundle import Bundle
from waterfill.errors import WaterfillError
from waterfill.files import WaterfillFile
from waterfill.models.arrays import exact_bytes

LARGE_BYTES = 1 << 22
"""What declares more when decoded is opened only."""

REFERENCE_VALUES = 1 << 13
"""So many values are decoded by the reference, too, which is slow."""

SLOW_SECONDS = 10.0
SPARE_BYTES, TIMES_DECLARED = 1 << 28, 24
"""Memory that nobody has to declare, and how often that may be taken which is declared."""

LONGEST_TEXT = 500
UNKNOWN_TO_NUMPY = ("float8", "complex32")

Values = dict[str, tuple[str, tuple[int, ...], bytes]]
"""Type, shape and bytes of every tensor, by name."""


class Finding(Exception):
    """Something that readers may not do."""


@dataclass
class Declared:
    """How much memory somebody was told of."""

    size_bytes: int = 0


def verdict(read, source, known, reference):
    """What became of a source: "refused", "large", "same" as the seed, or "other".

    Args:
        read: reads it, given the source and a `Declared`; None where it was not decoded.
        source: bytes of a file, or a folder.
        known: values of the seed.
        reference: values that other ones have to have, given the source and what was read; raises a finding.

    Raises:
        Finding: an exception that is none of ours, too long a text, much time or memory, other values.
    """
    declared, before, start = Declared(), _peak_bytes(), time.process_time()
    try:
        found = read(source, declared)
    except WaterfillError as error:
        _check_text(str(error))
        found = "refused"
    except Exception as error:
        raise Finding(f"exception: {type(error).__name__}: {str(error)[:300]}") from error
    _check_resources(time.process_time() - start, _peak_bytes() - before, declared)
    if found is None or found == "refused":
        return "large" if found is None else "refused"
    if found == known:
        return "same"
    reference(source, found)
    return "other"


def _check_text(text):
    if len(text) > LONGEST_TEXT or len(text.splitlines()) > 1:
        raise Finding(f"text: an error of {len(text)} characters in {len(text.splitlines())} lines: {text[:200]!r}")


def _check_resources(seconds, grown, declared):
    if seconds > SLOW_SECONDS:
        raise Finding(f"time: {seconds:.1f} CPU seconds")
    if grown > SPARE_BYTES + TIMES_DECLARED * declared.size_bytes:
        raise Finding(f"memory: {grown >> 20} MiB more, where {declared.size_bytes} bytes are declared")


def _peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def values_of(tensors):
    """Values by name."""
    return {
        name: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), exact_bytes(tensor))
        for name, tensor in tensors.items()
    }


# Files


def read_file(data, declared):
    """Everything in a file, in one go and tensor by tensor."""
    with WaterfillFile(data, threads=1) as file:
        declared.size_bytes = file.original_bytes
        if declared.size_bytes > LARGE_BYTES:
            return None
        file.fetch()
        found = values_of(dict(file.tensors()))
        for name in list(found)[:: max(1, len(found) // 3)]:
            if values_of({name: file[name]}) != {name: found[name]}:
                raise AssertionError(f"{name!r} has other values when it is asked for alone")
        file.container.tensor_bytes()
    return found


def check_file(data, found):
    """Compare with the reference decoder.

    Raises:
        Finding: it has other values, or none.
    """
    if sum(math.prod(shape) for _, shape, _ in found.values()) > REFERENCE_VALUES:
        return
    if any(dtype.startswith(UNKNOWN_TO_NUMPY) for dtype, _, _ in found.values()):
        return
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            expected = slow_decoder.decode(data)
    except Exception as error:
        raise Finding(f"reference: it refuses with {type(error).__name__}: {str(error)[:200]}") from error
    _compare(found, expected)


def _compare(found, expected):
    if list(found) != list(expected):
        raise Finding(f"values: tensors {list(found)[:9]}; expected {list(expected)[:9]}")
    for name, (dtype, shape, data) in found.items():
        if data != _bytes(expected[name], dtype):
            raise Finding(f"values: {name!r} {dtype} {shape} has other values than the reference decoder gives")


def _bytes(array, dtype):
    """The bytes that a tensor has whose values the reference decoder gives."""
    if dtype == "bfloat16":
        return (np.ascontiguousarray(array, np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return np.ascontiguousarray(array).tobytes()


# Directories


def read_directory(folder, declared):
    """Everything in a directory."""
    with Bundle(folder, threads=1) as bundle:
        declared.size_bytes = sum(bundle.file(group).original_bytes for group in bundle.groups)
        if declared.size_bytes > LARGE_BYTES:
            return None
        bundle.fetch()
        found = values_of(dict(bundle.tensors()))
        if sorted(found) != sorted(bundle):
            raise AssertionError("other tensors come back than are named")
        assert bundle.facts is not None
        assert set(bundle.shapes) == set(bundle.dtypes) == set(found)
    return found


def unchanged(known, *, whole):
    """A check that no tensor has other values than the seed's, and that none is missing where the whole is sealed."""

    def check(folder, found):
        del folder
        changed = [name for name in found.keys() & known.keys() if found[name] != known[name]]
        if changed or (whole and found.keys() != known.keys()):
            raise Finding(f"values: tensors {changed[:9]} of {len(found)}, {len(known)} in the seed, are others")

    return check


def check_payloads(groups):
    """A check that a directory has what the reference decoder finds in its payloads."""

    def check(folder, found):
        del folder
        for payload in groups.values():
            some = {name: found[name] for name in _names(payload) if name in found}
            if len(some) == len(_names(payload)):
                check_file(payload, some)

    return check


def _names(payload):
    with WaterfillFile(payload, threads=1) as file:
        return list(file)


def is_sealed(config_text):
    """Whether a directory has a digest of what it has."""
    return json.loads(config_text)["quantization_config"].get("minor", 0) >= 1


def write_out(folder: Path, files):
    """Write files of a directory: bytes, ("link", target), or None for a folder."""
    folder.mkdir()
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if data is None:
            path.mkdir()
        elif isinstance(data, tuple):
            path.symlink_to(data[1])
        else:
            path.write_bytes(data)
