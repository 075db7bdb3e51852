import json

import pytest

from waterfill.errors import FormatError, WaterfillError
from waterfill.reproduce.ledger import Ledger, claim_folder


def test_what_was_put_is_there_in_another_ledger(tmp_path):
    first = Ledger(tmp_path / "l.jsonl")
    assert first.get("a") is None
    assert first.put("a", {"x": 0.1}) == {"x": 0.1}
    first.put("b", [1, 2])
    second = Ledger(tmp_path / "l.jsonl")
    assert second.get("a") == {"x": 0.1} and second.get("b") == [1, 2]


def test_a_line_that_was_cut_off_is_dropped_and_the_next_one_is_whole(tmp_path):
    path = tmp_path / "l.jsonl"
    Ledger(path).put("a", 1)
    whole = path.read_bytes()
    Ledger(path).put("b", 2)
    for stop in range(len(whole) + 1, len(path.read_bytes())):
        cut = tmp_path / "cut.jsonl"
        cut.write_bytes(path.read_bytes()[:stop])
        ledger = Ledger(cut)
        assert ledger.get("a") == 1 and ledger.get("b") is None
        ledger.put("c", 3)
        assert [json.loads(line)[0] for line in cut.read_text().splitlines()] == ["a", "c"]


@pytest.mark.parametrize(
    "text",
    [
        "nonsense\n",
        "[1]\n",
        "3\n",
        '["a", 1, 2]\n',
        "\xff\n",
        '"ab"\n',
        '{"a": 1, "b": 2}\n',
        "[[1], 2]\n",
        5000 * "[" + "\n",
    ],
)
def test_other_contents_are_an_error_that_names_file_and_line(tmp_path, text):
    path = tmp_path / "l.jsonl"
    path.write_bytes(b'["a", 1]\n' + text.encode("latin-1"))
    with pytest.raises(FormatError, match=r"l\.jsonl is damaged in line 2.*Remove the file"):
        Ledger(path)


def test_a_folder_is_taken_by_one_run(tmp_path):
    folder = tmp_path / "run" / "deep"
    claim_folder(folder, {"seed": 0, "width": 32})
    claim_folder(folder, {"seed": 0, "width": 32, "sha256": "abc"})
    claim_folder(folder, {"seed": 0})
    with pytest.raises(WaterfillError, match=r"deep holds a run with sha256='abc'; expected 'def'.*another folder"):
        claim_folder(folder, {"seed": 0, "sha256": "def"})
    with pytest.raises(WaterfillError, match="width=32; expected 64"):
        claim_folder(folder, {"width": 64})


def test_a_folder_that_cannot_be_used_is_an_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(WaterfillError, match="cannot be made"):
        claim_folder(tmp_path / "file" / "folder", {})
    for text in ("{", "[]", "3"):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(FormatError, match=r"run\.json is damaged"):
            claim_folder(tmp_path, {})
