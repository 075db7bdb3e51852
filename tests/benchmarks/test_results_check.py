"""The check of results: every page has a line, rows that differ are behind, README is compared with its pages."""

import pytest

import readme_numbers
import results
import results_check
import samples
from readme_numbers import CLAIMS, Claim
from samples import BYTES, ERROR, SAMPLES, Sample, Within

SAMPLED = [page for page, sample in SAMPLES.items() if isinstance(sample, Sample)]


def sample(found, **columns):
    return Sample("a row", "Files", samples.has(network="a"), lambda: found, columns)


DATA = {"Files": [{"network": "b", "bytes": 1}, {"network": "a", "bytes": 1000, "error": "KL (nats) 0.2, top-1 % 91"}]}


def verdicts(found, **columns):
    return [verdict for _, _, _, verdict in results_check.compared(sample(found, **columns), DATA)]


def test_every_page_is_sampled_or_says_why_not():
    assert set(SAMPLES) == set(results.pages())


@pytest.mark.parametrize("page", SAMPLED)
def test_the_row_that_is_sampled_is_on_the_page(page):
    sample = SAMPLES[page]
    rows = [row for row in results.read(sample.source or page)[sample.section] if sample.where(row)]
    assert rows and set(sample.columns) <= set(rows[0])
    assert all(results_check.number(rows[0][column]) is not None for column in sample.columns)


def test_numbers_are_near_enough_within_a_share_or_a_distance():
    assert Within(0.1).holds(-10, -10.9) and not Within(0.1).holds(-10, -11.1)
    assert Within(absolute=0.5).holds(0, 0.5) and not Within(absolute=0.5).holds(0, 0.6)


def test_rows_that_differ_are_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("WATERFILL_DATA", str(tmp_path))
    assert verdicts({"bytes": 1002}, bytes=BYTES) == ["as recorded"]
    assert verdicts({"bytes": 1004, "error": 0.209}, bytes=BYTES, error=ERROR) == ["behind", "as recorded"]
    assert verdicts({"bytes": 1000, "error": 0.211}, error=ERROR) == ["behind"]


def test_rows_that_cannot_be_made_say_why(tmp_path, monkeypatch):
    monkeypatch.setenv("WATERFILL_DATA", str(tmp_path / "missing"))
    assert verdicts({"bytes": 1}, bytes=BYTES) == ["not sampled: $WATERFILL_DATA has no data"]
    monkeypatch.setenv("WATERFILL_DATA", str(tmp_path))
    assert list(results_check.compared(sample({}, bytes=BYTES), {})) == [("bytes", "", "", "not on the page")]
    assert verdicts({}, bytes=BYTES) == ["failed: KeyError: 'bytes'"]


@pytest.mark.usefixtures("pages")
@pytest.mark.parametrize(("bytes_now", "code"), [(1000, 0), (1100, 1)])
def test_the_exit_code_says_whether_a_page_is_behind(tmp_path, monkeypatch, capsys, bytes_now, code):
    monkeypatch.setenv("WATERFILL_DATA", str(tmp_path))
    monkeypatch.setattr(readme_numbers, "CLAIMS", ())
    monkeypatch.setattr(readme_numbers, "unclaimed", list)
    monkeypatch.setitem(SAMPLES, "one", sample({"bytes": bytes_now}, bytes=BYTES))
    results.write_page("one", "One", "Text.", [results.Section("Files", "", [{"network": "a", "bytes": 1000}])])
    monkeypatch.setattr("sys.argv", ["results_check.py"])
    assert results_check.main() == code
    assert f"| one | a row: bytes | 1,000 | {bytes_now:,} |" in capsys.readouterr().out
    results.write("new", "New", "Text.", [{"bytes": 1}])
    assert results_check.main() == 1
    assert "| new |  |  |  | failed: it has no line in benchmarks/samples.py |" in capsys.readouterr().out


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.start)
def test_lines_of_readme_with_numbers_are_there(claim):
    assert readme_numbers.missing(claim) != ["no such line in README"]


def test_all_rows_of_readme_are_of_a_page():
    assert readme_numbers.unclaimed() == []


def test_readme_is_compared_with_the_page(pages):
    results.write("one", "One", "Text.", [{"bytes": 2000}])
    readme = pages / "README.md"
    readme.write_text("## Measured\n\n| network | file |\n|---|---|\n| Net | 1,000 bytes |\n| Other | 3 |\n\n## Next\n")
    claim = Claim("| Net", "one", lambda data: [f"{data['rows'][0]['bytes']:,} bytes"])
    assert readme_numbers.missing(claim, readme) == ["2,000 bytes"]
    assert readme_numbers.missing(Claim("| None", "one", claim.says), readme) == ["no such line in README"]
    assert readme_numbers.missing(Claim("| Net", "none", claim.says), readme) == ["no such row on the page"]
    assert readme_numbers.unclaimed(readme) == ["| Net | 1,000 bytes |", "| Other | 3 |"]
    results.write("one", "One", "Text.", [{"bytes": 1000}])
    assert readme_numbers.missing(claim, readme) == []
