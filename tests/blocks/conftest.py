"""Directories of tiny models, each made once, and what the compressor makes of them."""

import pytest

transformers = pytest.importorskip("transformers")

import waterfill  # noqa: E402
from families import FAMILIES, batches, maker  # noqa: E402

transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def directories(tmp_path_factory):
    """A function from the name of a family to its directory."""
    return maker(tmp_path_factory.mktemp("families"))


@pytest.fixture(scope="session")
def compressed(directories, tmp_path_factory):
    """A function from the name of a family to a compressed directory and its result, at 4 bits with data."""
    place, made = tmp_path_factory.mktemp("compressed"), {}

    def result(name):
        if name not in made:
            made[name] = waterfill.compress_directory(directories(name), place / name, batches(), rate=4)
        return place / name, made[name]

    return result


@pytest.fixture(params=FAMILIES)
def family(request, directories):
    """Name and directory of every family."""
    return request.param, directories(request.param)
