"""Changed files through both readers: `PYTHONPATH=tests:tests/twins python -m decoders.differential --count 10000`.

Both have to refuse the same files, and to give the same tensors for all others. Only damaged frames of zstandard may
be read by Python alone: on some machines its library does not look whether a stream of a Huffman code ends where it
should.
"""

import argparse
import shutil
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from random import Random

import numpy as np

from decoders.c_reader import DTYPES, LIMIT, SANITIZED, Reader, Refused, built
from fuzz import files, seeds
from fuzz.anatomy import made_plain, take_apart
from fuzz.examine import LARGE_BYTES, values_of
from waterfill.codec import native
from waterfill.errors import FormatError
from waterfill.files import WaterfillFile

KINDS = ("mixture", *files.KINDS)
STRICTER = "a frame cannot be decompressed (a block is damaged)", "damaged"
"""What C says of frames that libraries may read; the second text is that of WF_SMALL."""

FRAMES = "exact_frame", "packed_directory", "mixture"
"""Kinds of changes that damage frames."""

BUILDS = {"c": [], "small": ["-DWF_SMALL"], "plain": ["-DWF_SMALL", "-DWF_PLAIN"]}
"""Options of the readers in C."""


def plain_files():
    """Plain files, by name."""
    return {name: data if take_apart(data).is_plain else made_plain(data) for name, data in seeds.files().items()}


def mutants(seed, count, known=None):
    """Names of seeds and kinds with the changed files, each made from the seed and its number; `known`: the seeds."""
    known = known or seeds.files()
    names = sorted(known)
    number = 0
    while count:
        random = Random(f"{seed} {number}")
        number += 1
        kind, name = random.choice(KINDS), random.choice(names)
        if files.suits(kind, known[name]):
            count -= 1
            yield f"{number - 1} {kind} of {name}", files.changed(kind, random, known[name], list(known.values()))


def by_python(data):
    """Tensors of a file as the kernels read them; None where they are many, a text where it is refused."""
    try:
        with native.switched_off(), WaterfillFile(data, threads=1) as file:
            if file.original_bytes > LARGE_BYTES:
                return None
            file.fetch()
            return values_of(dict(file.tensors()))
    except FormatError as error:
        return str(error)


def by_module(data):
    """The same as the reader in C has them, as a module of Python."""
    try:
        with WaterfillFile(data, threads=1) as file:
            file.fetch()
            return values_of(dict(file.tensors()))
    except FormatError as error:
        return str(error)


def by_c(reader, data):
    """The same as the reader in C has them, or another process."""
    try:
        return reader.tensors(data, limit=LIMIT)
    except Refused as error:
        return str(error)


def alike(one, other):
    """Whether two readers agree; numbers that are none may have any bits."""
    if isinstance(one, str) or isinstance(other, str):
        return isinstance(one, str) and isinstance(other, str)
    if list(one) != list(other):
        return False
    return all(same(one[name], other[name]) for name in one)


def same(one, other):
    """Whether two tensors are the same."""
    if one == other:
        return True
    if one[:2] != other[:2] or one[0] not in ("float64", "float32", "float16", "bfloat16"):
        return False
    arrays = [floats(dtype, data) for dtype, _, data in (one, other)]
    none = np.isnan(arrays[0]) & np.isnan(arrays[1])
    return bool((none | (arrays[0].view(np.uint8).reshape(none.size, -1) ==
                         arrays[1].view(np.uint8).reshape(none.size, -1)).all(axis=1)).all())  # fmt: skip


def floats(dtype, data):
    """Values of a tensor of a floating-point type."""
    if dtype == "bfloat16":
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, dtype)


def compared(read, some):
    """How many files were read, refused and large, and the names of those that readers disagree about.

    Args:
        read: what another reader than the kernels has of a file: tensors, or the text of an error.
        some: names and files.
    """
    counts, wrong = Counter(), []
    for name, data in some:
        expected = by_python(data)
        if expected is None:
            counts["large"] += 1
            continue
        counts["refused" if isinstance(expected, str) else "read"] += 1
        found = read(data)
        is_frame = any(f" {kind} of " in name for kind in FRAMES)
        if is_frame and isinstance(found, str) and found.endswith(STRICTER) and not isinstance(expected, str):
            counts["damaged frames that Python reads"] += 1
        elif not alike(expected, found):
            wrong.append((name, str(expected)[:160], str(found)[:160]))
    return counts, wrong


def main():
    """Compare, and say where readers disagree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sanitize", action="store_true")
    parser.add_argument("--reader", choices=(*BUILDS, "module", "alone"), default="c", help="beside the kernels")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, np.errstate(all="ignore"), ExitStack() as stack:
        read = by_module
        if options.reader != "module":
            read = partial(by_c, stack.enter_context(opened(options.reader, Path(folder), options.sanitize)))
        known = plain_files() if options.reader == "plain" else None
        counts, wrong = compared(read, mutants(options.seed, options.count, known))
    print(dict(counts))
    for name, expected, found in wrong:
        print(f"{name}: kernels {expected!r}, {options.reader} {found!r}")
    sys.exit(bool(wrong))


def opened(reader, folder, sanitize):
    """A reader that is a process: one in C, or Python with nothing but what reading needs."""
    if reader == "alone":
        return Reader(sys.executable, str(Path(__file__).with_name("alone.py")), ",".join(DTYPES))
    compiler = shutil.which("cc") or shutil.which("gcc")
    return Reader(built(folder, compiler, [*(SANITIZED if sanitize else ["-O2"]), *BUILDS[reader]]))


if __name__ == "__main__":
    main()
