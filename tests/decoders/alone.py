"""The package as a process that answers as driver.c does, in which only what reading needs is installed."""

import importlib.abc
import os
import struct
import sys

ABSENT = ("matplotlib", "numba", "safetensors", "scipy", "sklearn", "threadpoolctl", "torch", "transformers", "triton")


class Absent(importlib.abc.MetaPathFinder):
    """Finds nothing where other finders would find what is not to be there."""

    def find_spec(self, name, *_):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def answers(data, dtypes):
    """The bytes that say what is in a file, or why it is refused."""
    from waterfill.codec import native
    from waterfill.errors import FormatError
    from waterfill.io.file import ArrayFile

    try:
        with native.switched_off(), ArrayFile(data, threads=1) as file:
            file.fetch()
            tensors = dict(file.tensors())
    except FormatError as error:
        text = str(error).encode()
        return struct.pack("<II", 1, len(text)) + text
    found = [struct.pack("<II", 0, 0)]
    for name, values in tensors.items():
        elements = bytes(values.elements())
        text, shape = name.encode(), values.shape
        found += [struct.pack("<I", len(text)), text, struct.pack("<II", dtypes.index(values.dtype), len(shape))]
        found += [struct.pack(f"<{len(shape)}Q", *shape), struct.pack("<Q", len(elements)), elements]
    return b"".join([*found, struct.pack("<I", 0xFFFFFFFF)])


def begin():
    """Let nothing of it be found from here on."""
    sys.meta_path.insert(0, Absent())


def main(dtypes):
    """Answer until there is no request."""
    begin()
    source, out = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    while head := source.read(17):
        size = struct.unpack_from("<Q", head, 9)[0]
        out.write(answers(source.read(size), dtypes))
        out.flush()


if __name__ == "__main__":
    main(sys.argv[1].split(","))
