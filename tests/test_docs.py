import re
from pathlib import Path

import pytest

from waterfill import cli
from waterfill.codec import container, tables

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_code_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert (tmp_path / "model.wf").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_format_page_has_the_numbers_of_the_code():
    text = (ROOT / "docs" / "format.md").read_text()
    assert tables.SHA256 in text
    assert " ".join(f"{byte:02X}" for byte in container.MAGIC) in text
    assert f"version, {container.VERSION}" in text
    assert f"Class {tables.FIRST_BANK_CLASS} + {tables.SCALES}·family" in text


def test_every_command_of_the_readme_exists():
    commands = set(re.findall(r"^waterfill (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    registered = {command.callback.__name__ for command in cli.app.registered_commands}
    assert commands and commands <= registered
