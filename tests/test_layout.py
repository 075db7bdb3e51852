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
    "_version",
    "errors", "loaded", "numba_cache", "compiled", "devices", "threads", "file_system", "temporary", "atomic",
    "records",
    "linear_algebra", "theory", "bases", "codec", "reconstruct", "io", "numpy",
    "protocols", "processes", "models", "distortion",
    "importance", "quantize", "targets", "files", "text", "bundle", "resident", "integrations", "reading", "torch",
    "batch_statistics", "evaluation", "resume", "results",
    "compression", "report", "zoo", "progress", "demo", "reproduce", "cli",
)  # fmt: skip
"""The way through the package: a module imports only from itself and from what comes before it."""


def module_name(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in SOURCES}


def station(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path):
    """Names of this package that a file imports, with their lines: at the top, in functions and for type checking."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively; name the package"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((name, node.lineno) for name in names if name.split(".")[0] == "waterfill")


def parents(module):
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def needs(module):
    """Modules whose code an import in this one may run.

    These are what it names, and the packages around that; not those around the module itself, which were begun before.
    Public names of the root package are found by a table, which is tested to be what it imports for type checkers.
    """
    every = ([name, *reversed(parents(name))] for name, _ in imports(MODULES[module]))
    named = {next(name for name in names if name in MODULES) for names in every}  # what is compiled has no file
    around = {parent for name in named for parent in parents(name)}
    return named | (around - {module, *parents(module)})


def reachable(graph, start):
    found, ahead = set(), [start]
    while ahead:
        new = graph[ahead.pop()] - found
        found |= new
        ahead += new
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_from_modules_above_it(path):
    if path.parent == ROOT and path.stem in ("__init__", "__main__"):
        return
    here = station(path)
    assert here in ORDER, f"{here} has no place in the order of this test"
    for name, line in imports(path):
        assert name.split(".")[1:], f"{path}:{line}: {here} imports the root package, which is for users"
        other = name.split(".")[1]
        assert other in ORDER, f"{path}:{line}: {name} is a name of the root package, which is for users"
        assert other == here or ORDER.index(other) < ORDER.index(here), f"{path}:{line}: {here} imports {other}"


def test_no_module_needs_itself():
    graph = {module: needs(module) for module in MODULES}
    ahead = {module: reachable(graph, module) for module in MODULES}
    circles = {
        frozenset(other for other in ahead[module] if module in ahead[other])
        for module in MODULES
        if module in ahead[module]
    }
    assert [sorted(circle) for circle in circles] == []


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


LIBRARIES = ("torch", "numpy", "scipy", "numba", "transformers", "matplotlib", "sklearn", "PIL")
HEAVY = (*LIBRARIES, "rich", "typer")
COMMANDS = ("bound", "compress", "decompress", "demo", "evaluate", "inspect", "report", "reproduce")


def fresh(script):
    """What a script prints in a fresh process, in which warnings are errors."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_import_stays_light():
    assert fresh(f"import sys, waterfill; print([name for name in {HEAVY} if name in sys.modules])") == "[]"


@pytest.mark.parametrize("words", ["--version", "--help", *(f"{name} --help" for name in COMMANDS)])
def test_version_and_help_stay_light(words):
    script = "import sys\nfrom waterfill.cli import app\n"
    script += f"app({words.split()}, standalone_mode=False)\n"
    script += f"print([name for name in {LIBRARIES} if name in sys.modules])"
    told = fresh(script).splitlines()
    assert "Usage: " in "".join(told) or told[0] == f"waterfill {waterfill.__version__}"
    assert told[-1] == "[]"


def test_no_module_takes_the_name_of_a_function():
    assert not [name for name in waterfill._FUNCTIONS if f"waterfill.{name}" in MODULES]


def test_the_table_of_functions_names_the_module_that_a_type_checker_sees():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    seen = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        for alias in node.names
    }
    modules = {name for name, module in seen.items() if module == "waterfill"}
    assert modules | {"errors"} == set(waterfill.__all__) - set(waterfill._FUNCTIONS)
    assert {name: module for name, module in seen.items() if name not in modules} == waterfill._FUNCTIONS
