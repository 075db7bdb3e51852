"""Pages name what made them, row by row where that differs, and keep notes until they are made again."""

import json
import subprocess

import pytest

import commits
import results
import stamps
from results import Section

ROWS = [{"bytes": 1000, "error": 0.25}]


def sections(*titles):
    return [Section(title, f"About {title}.", ROWS) for title in titles]


def made_again(monkeypatch, commit):
    monkeypatch.setattr(commits, "commit", lambda root=None, also=(): commit)  # noqa: ARG005


def test_a_page_names_its_commit_and_command_without_paths(pages):
    results.write("one", "One", "Text.", ROWS)
    text = (pages / "one.md").read_text()
    assert text.startswith("# One\n\nText.\n\n| bytes | error |")
    assert "Made at commit aaaaaaa by `python benchmarks/sweep.py --only x ... --keep=...`, Python" in text
    assert results.read("one") == {"rows": ROWS}
    assert json.loads((pages / "one.json").read_text())["made"]["page"]["commit"] == "aaaaaaa"


def test_a_page_of_a_changed_tree_says_so(pages, monkeypatch):
    made_again(monkeypatch, "aaaaaaa+")
    results.write("one", "One", "Text.", ROWS)
    assert "Made at commit aaaaaaa, with changes that are in no commit, by `" in (pages / "one.md").read_text()


def test_sections_that_were_measured_apart_each_name_their_commit(pages, monkeypatch):
    results.write_page("two", "Two", "Text.", sections("A", "B"))
    text = (pages / "two.md").read_text()
    assert text.count("Made at commit") == 1 and text.rstrip().endswith(".") and "aaaaaaa" in text.splitlines()[-1]
    made_again(monkeypatch, "bbbbbbb")
    results.keep("two", results.read("two"), ["B"])
    results.write_page("two", "Two", "Text.", sections("A", "B"), measured=())
    text = (pages / "two.md").read_text()
    assert "## A\n\nMade at commit aaaaaaa by" in text
    assert "## B\n\nMade at commit bbbbbbb by" in text
    assert text.count("Made at commit") == 2
    assert stamps.of_pages(results.made("two")) == ["aaaaaaa", "bbbbbbb"]


def test_pages_whose_rows_name_commits_have_those(pages):
    results.write_page("two", "Two", "Text.", sections("A"), named=["ccccccc", "bbbbbbb", "ccccccc"])
    results.keep("two", {"raw": ROWS} | results.read("two"))
    (pages / "two.md").write_text(results.dressed("two"))
    end = (pages / "two.md").read_text().splitlines()[-1]
    assert end.startswith(
        "Made at commits bbbbbbb, ccccccc, which rows or texts name, by `python benchmarks/sweep.py`,"
    )


def test_files_of_older_scripts_are_read_and_can_be_given_a_commit(pages):
    (pages / "old.json").write_text(json.dumps(ROWS))
    (pages / "old.md").write_text("# Old\n\n> By hand.\n\nText.\n\nMade by `python benchmarks/old.py`, Python 3.\n")
    assert results.read("old") == {"rows": ROWS}
    assert results.made("old") == {}
    results.main(["old=ddddddd"])
    assert results.read("old") == {"rows": ROWS}
    text = (pages / "old.md").read_text()
    assert text.startswith("# Old\n\nText.\n\nMade at commit ddddddd (named afterwards) by `python benchmarks/old.py`,")


def test_a_note_stays_until_the_page_is_made_with_the_change(pages, monkeypatch):
    note = {"changed": "bbbbbbb", "pages": ["one"], "text": "Files became smaller."}
    (pages / "notes.json").write_text(json.dumps([note, note | {"pages": ["two"], "text": "Of another page."}]))
    monkeypatch.setattr(commits, "contains", lambda made, change: made >= change)
    results.write("one", "One", "Text.", ROWS)
    text = (pages / "one.md").read_text()
    assert text.startswith("# One\n\n> Files became smaller.\n\nText.\n\n|")
    assert results.dressed("one") == text
    made_again(monkeypatch, "bbbbbbb")
    results.write("one", "One", "Text.", ROWS)
    assert ">" not in (pages / "one.md").read_text()


def test_commits_are_those_of_the_library(tmp_path, monkeypatch):
    def git(*command):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "-C", tmp_path, *who, *command], check=True, capture_output=True)

    def change(path):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(path)
        git("add", ".")
        git("commit", "-m", path)

    git("init")
    change("src/a.py")
    monkeypatch.setattr(commits, "tree", lambda: tmp_path)
    find = commits.commit.__wrapped__
    first = find()
    change("docs.md")
    assert find() == first and commits.behind(first) == 0
    (tmp_path / "src" / "b.py").write_text("new")
    assert find() == f"{first}+"
    change("src/b.py")
    second = find()
    assert second != first and commits.behind(f"{first}+") == 1
    assert commits.contains(second, first) and commits.contains(second, second)
    assert not commits.contains(first, second) and not commits.contains("", first)
    assert not commits.contains(first, "1234567") and commits.behind("1234567") is None


def test_text_can_name_several_commits():
    assert commits.named("0c78920 to 36018df") == ["0c78920", "36018df"]
    assert commits.named("aaf7283+") == ["aaf7283+"]


@pytest.mark.parametrize("page", results.pages())
def test_every_page_names_its_commits_and_has_its_notes(page):
    assert stamps.of_pages(results.made(page)), f"python benchmarks/results.py {page}=COMMIT"
    if commits.behind(stamps.of_pages(results.made(page))[0]) is not None:  # git has the whole history
        assert (results.FOLDER / f"{page}.md").read_text() == results.dressed(page), "python benchmarks/results.py"
