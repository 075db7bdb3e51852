"""The table of symbols at the end of docs/theory.md: nothing missing, nothing that does not exist."""

import importlib
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "theory.md"
TEXT, TABLE = PAGE.read_text().split("\n## Symbols\n")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TABLE.splitlines() if line.startswith("| $")]
OPERATORS = (
    "approx arccos cdot det exp frac ge hat infty lbrace ldots le left ln log max mid min nabla otimes pi preceq prod"
)
OPERATORS += (
    " propto qquad quad rbrace right sim sqrt sum textstyle tfrac thinspace tilde to underbrace Vert Gamma mathrm"
)


def symbols(text):
    """Letters and Greek letters of all formulas of a text, without words and operators."""
    formulas = re.sub(r"\\(text|mathrm)\s*\{[^}]*\}", " ", " ".join(re.findall(r"\$\$?([^$]+)\$\$?", text)))
    greek = set(re.findall(r"\\([A-Za-z]+)", formulas)) - set(OPERATORS.split())
    letters = set(re.findall(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", " ", formulas)))
    return greek | letters


def test_every_symbol_of_the_page_is_in_the_table():
    assert symbols(TEXT) - symbols(TABLE) - set("ijlO") == set()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_functions_exist_and_their_tests_name_them(row):
    _, _, function, test = row
    if function:
        module, name = function.strip("`").split(".")
        assert hasattr(importlib.import_module(f"waterfill.theory.{module}"), name)
        path = re.search(r"\((.*)\)", test)[1]
        assert name in (PAGE.parent / path).read_text()
