"""How a file is read without the reader in C: values are kept no longer than they are needed."""

import gc
import weakref

import numpy as np

from waterfill.codec import container, native
from waterfill.io.file import ArrayFile
from waterfill.records import Coded, Entry, Exact, Layout, Quantized, Spread, Uniform


def file_of(count, shape):
    """A file of as many coded tensors and exact ones."""
    coded = [Entry(f"w{n}", shape, "float32", Coded(Layout(shape))) for n in range(count)]
    exact = [Entry(f"x{n}", shape, "float32", Exact("")) for n in range(count)]
    symbols = np.zeros(shape, np.int32)
    quantized = {entry.name: Quantized(symbols, Uniform(0), Spread(5, 30)) for entry in coded}
    return container.pack((*coded, *exact), quantized, {e.name: bytes(4 * symbols.size) for e in exact}, "test").data


def test_tensors_of_one_row_are_not_kept_until_the_end():
    with native.switched_off(), ArrayFile(file_of(9, (1, 50)), threads=1) as file:
        alive = weakref.WeakSet()
        most = 0
        for _, values in file.tensors():
            alive.add(values)
            del values
            gc.collect()
            most = max(most, len(alive))
    assert most < 6
