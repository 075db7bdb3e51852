"""The examples in the docstrings of the package run, and give what they say."""

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import waterfill

USED = {"np": np, "waterfill": waterfill}
"""What the examples use without importing it."""


def modules():
    """Names of all modules of the package; one that runs when it is imported is none."""
    found = pkgutil.walk_packages(waterfill.__path__, "waterfill.")
    return ["waterfill", *(module.name for module in found if not module.name.endswith(".__main__"))]


def docstrings(name):
    """The docstrings of a module that have examples."""
    found = doctest.DocTestFinder().find(importlib.import_module(name), name, extraglobs=USED)
    return [docstring for docstring in found if docstring.examples]


def to_run(docstring):
    return sum(not example.options.get(doctest.SKIP, False) for example in docstring.examples)


DOCSTRINGS = {name: found for name in modules() if (found := docstrings(name))}
RUN = [name for name, found in DOCSTRINGS.items() if any(map(to_run, found))]


@pytest.mark.parametrize("name", RUN)
def test_the_examples_of_a_module_give_what_they_say(name):
    runner, said = doctest.DocTestRunner(verbose=False), []
    for docstring in DOCSTRINGS[name]:
        result = runner.run(docstring, out=said.append, clear_globs=False)
        assert not result.failed, "".join(said)
        assert result.attempted >= to_run(docstring)
    assert runner.tries > 0


def test_no_example_is_overlooked():
    sources = [path.read_text() for path in Path(waterfill.__file__).parent.rglob("*.py")]
    written = sum(len(re.findall(r"^ *>>> ", text, re.MULTILINE)) for text in sources)
    assert sum(len(docstring.examples) for found in DOCSTRINGS.values() for docstring in found) == written
    assert len(RUN) > 5


@pytest.mark.parametrize(("answer", "failed"), [("3.0", 0), ("4.0", 1)])
def test_a_wrong_answer_is_noticed(answer, failed):
    said = []
    docstring = doctest.DocTestParser().get_doctest(f">>> float(np.hypot(0, 3))\n{answer}\n", USED, "wrong", None, 0)
    assert doctest.DocTestRunner(verbose=False).run(docstring, out=said.append).failed == failed
    assert bool(said) == failed


def test_imports_say_write_and_seed_nothing(tmp_path):
    """All modules in a process of their own, in an empty folder."""
    script = (
        "import importlib, sys, numpy, torch\n"
        "def state(): return (numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), numpy.geterr(),\n"
        "    torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled())\n"
        "before = state()\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "assert state() == before"
    )
    command = [sys.executable, "-W", "error", "-c", script, *modules()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())
