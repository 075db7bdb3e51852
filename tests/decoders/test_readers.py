"""All readers beside each other: the same files are read, with the same bits, and the same are refused.

They are the kernels of numba, which the others are compared with; the reader in C as a module of Python (test_c.py has
it as a program, with sanitizers) and as it is for small devices; Python and NumPy alone; and the slow decoder of
docs/format.md, which reads but does not check.
"""

import shutil
from functools import partial
from random import Random

import numpy as np
import pytest

from attacks import test_plain as plain_attacks
from decoders import differential
from decoders.c_reader import Refused
from decoders.test_c import attack_files, damaged_files
from fuzz import seeds
from waterfill.codec import native


@pytest.fixture(scope="module", params=["module", "alone", "small"])
def read(request, tmp_path_factory):
    """What a reader has of a file: tensors, or the text of an error."""
    if request.param == "module":
        if not native.is_there():
            pytest.skip("the reader in C was not built")
        yield differential.by_module
        return
    if request.param == "small" and shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    with differential.opened(request.param, tmp_path_factory.mktemp("reader"), sanitize=True) as reader:
        yield partial(differential.by_c, reader)


@pytest.fixture(scope="module")
def plain_reader(tmp_path_factory):
    """The reader in C that reads plain files alone."""
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    with differential.opened("plain", tmp_path_factory.mktemp("reader"), sanitize=True) as reader:
        yield reader


def expect_alike(read, some):
    """Readers agree about files; how many were refused."""
    with np.errstate(all="ignore"):
        counts, wrong = differential.compared(read, some)
    assert not wrong, wrong[:3]
    return counts["refused"]


def test_files_of_every_kind(read):
    assert expect_alike(read, seeds.files().items()) == 0


def test_files_that_lie(read):
    assert expect_alike(read, attack_files()) > 50
    assert expect_alike(read, plain_attacks.files()) > 1000


def test_changed_and_cut_files(read):
    assert expect_alike(read, Random(0).sample(list(damaged_files()), 150)) > 100


def test_mutants(read):
    assert expect_alike(read, differential.mutants(1, 300)) > 100


def test_plain_files_without_anything_else(plain_reader):
    read, known = partial(differential.by_c, plain_reader), differential.plain_files()
    assert expect_alike(read, known.items()) == 0
    assert expect_alike(read, differential.mutants(2, 300, known)) > 100
    assert expect_alike(read, plain_attacks.files()) > 1000
    with pytest.raises(Refused, match="version"):
        plain_reader.tensors(seeds.files()["exact"])
