"""Directories of tiny models, each made once, and what the compressor makes of them."""

import importlib.util

import pytest

NAMES = ("llama", "tied", "mixtral", "qwen2moe", "gemma3", "gpt2", "bert")
"""Families of models."""

collect_ignore = []
if importlib.util.find_spec("transformers") is None:
    collect_ignore += [
        "test_directories.py",
        "test_directory_commands.py",
        "test_kfac_statistics.py",
        "test_layer_stages.py",
        "test_work_folders.py",
    ]


@pytest.fixture(scope="session")
def directories(tmp_path_factory):
    """A function from the name of a family to its directory."""
    import transformers

    from families import maker

    transformers.utils.logging.disable_progress_bar()
    return maker(tmp_path_factory.mktemp("families"))


@pytest.fixture(scope="session")
def compressed(directories, tmp_path_factory):
    """A function from the name of a family to a compressed directory and its result, at 4 bits with data."""
    import waterfill
    from families import batches

    place, made = tmp_path_factory.mktemp("compressed"), {}

    def result(name):
        if name not in made:
            made[name] = waterfill.compress_directory(directories(name), place / name, batches(), rate=4)
        return place / name, made[name]

    return result


@pytest.fixture(params=NAMES)
def family(request, directories):
    """Name and directory of every family."""
    return request.param, directories(request.param)
