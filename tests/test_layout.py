"""What may import what, and what the package shows."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import waterfill

ROOT = Path(waterfill.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))
ORDER = (
    "errors", "atomic", "records", "theory", "protocols", "models", "importance", "codec", "reconstruct", "quantize",
    "files", "text", "bundle", "resident", "integrations", "reading", "calibrate", "evaluate", "resume", "allocate",
    "curves", "tune", "limits", "forecast", "efforts", "prepare", "workshop", "search", "results", "blocks", "compress",
    "bound", "report", "zoo", "progress", "demo", "reproduce", "cli",
)  # fmt: skip
"""The way through the package: a module imports only from itself and from what comes before it."""


def station(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path):
    """Stations that a file imports with their lines: at the top, inside functions and for type checking alike."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively; name the package"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((name.split(".")[1], node.lineno) for name in names if name.startswith("waterfill."))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_from_modules_above_it(path):
    if path.parent == ROOT and path.stem in ("__init__", "__main__"):
        return
    here = station(path)
    assert here in ORDER, f"{here} has no place in the order of this test"
    for other, line in imports(path):
        assert other == here or ORDER.index(other) < ORDER.index(here), f"{path}:{line}: {here} imports {other}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_lists_of_public_names_are_sorted(path):
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == ["__all__"]:
            names = ast.literal_eval(node.value)
            assert names == sorted(names) and len(names) == len(set(names))


def test_every_public_name_exists_and_is_explained():
    for name in waterfill.__all__:
        assert inspect.getdoc(getattr(waterfill, name)), name
    for package in (waterfill.errors, waterfill.importance, waterfill.quantize):
        for name, value in vars(package).items():
            if not name.startswith("_") and (inspect.isclass(value) or inspect.isfunction(value)):
                assert inspect.getdoc(value), f"{package.__name__}.{name}"
    assert set(dir(waterfill)) == set(waterfill.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        waterfill.no_such_name  # noqa: B018


def test_the_import_stays_light():
    heavy = ["numba", "scipy", "rich", "typer", "sklearn", "matplotlib", "PIL"]
    script = f"import sys, waterfill; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
