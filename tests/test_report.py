"""Pages about saved results: what they say, that they are whole, and what a browser makes of them."""

import dataclasses
import json
import math
import os
import re
import shutil
import signal
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from waterfill.errors import FormatError, UsageError
from waterfill.report.asked_plot import decades
from waterfill.report.bytes_map import squarified
from waterfill.report.html import page
from waterfill.report.saved import parse, read
from waterfill.report.svg import ticks
from waterfill.report.text import result_table
from waterfill.report.words import MINUS, NONE, TIMES, fixed, plain, printable, short, signed, size_text
from waterfill.results import CompressionResult, TensorReport

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium to open a page with")
HOSTILE = (
    "<script>document.title='taken'</script>",
    "\"'><img src=x onerror=alert(1)>",
    "a\x00\x1b[31m\u202e",
    "\ud800",
)


def tensor(index, name=None, distortion=1e-4):
    count, rate = 100 * (index + 1), 2.0 + (7 * index % 10) / 4
    return TensorReport(
        name or f"layer.{index}.weight", (10, count // 10), count, rate * count / 8, rate, distortion * (1 + index % 3),
        "path, 64 states", "", rate - 0.25, 0.01, "generalized Gaussian",
    )  # fmt: skip


def result(count=5, name=None, **changes):
    rows = tuple(tensor(index, name and f"{index}{name}") for index in range(count))
    rows += (TensorReport("steps", (), 1, 8.0, 64.0, None, "exact", "integer"),)
    values = max(1, sum(row.numel for row in rows))
    size = math.ceil(sum(row.size_bytes for row in rows)) + 100
    rate = 8 * size / values
    made = CompressionResult(
        data=b"x" * size, floating_values=values, original_bytes=4 * values, tensors=rows, overhead_bytes=100.0,
        water_level=1e-5, distortion=0.002, target={"rate": 3.0}, importance="kronecker", importance_power=0.5,
        limit=rate - 0.3, limit_error=0.01, limit_measure="kronecker^0.5", distortion_unit="nats of KL",
        limit_distortion=4.0 ** -(rate - 0.3), limit_curve=tuple((bits / 4, 4.0 ** -(bits / 4)) for bits in range(40)),
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def saved(**changes):
    return parse(result(**changes).to_json())


class Walk(HTMLParser):
    """Follows the tags of a page: all are closed in their order, and nothing leads outside."""

    VOID = ("meta", "input", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.names, self.attributes, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.names.append(tag)
        self.attributes += [(tag, *each) for each in attributes]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.names.append(tag)
        self.attributes += [(tag, *each) for each in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data):
        self.words += [] if self.open and self.open[-1] in ("script", "style") else [data]


def check(text):
    walk = Walk(text)
    names = {name for _, name, _ in walk.attributes}
    assert not names & {"src", "href", "srcset", "action", "xlink:href"}
    assert not any(name.startswith("on") for name in names)
    assert walk.names.count("script") == walk.names.count("style") == walk.names.count("main") == 1
    assert "://" not in text and "url(" not in text and "@import" not in text
    assert set(walk.names) <= {
        "html", "head", "meta", "title", "style", "body", "main", "header", "footer", "section", "div", "span", "p",
        "i", "b", "small", "h1", "h2", "h3", "table", "caption", "thead", "tbody", "tr", "th", "td", "svg", "g", "line",
        "path", "rect", "circle", "text", "label", "input", "output",
        "script",
    }  # fmt: skip
    ids = [value for _, name, value in walk.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    for tag, name, value in walk.attributes:
        if tag in ("rect", "line", "circle", "svg") and name in ("x", "y", "x1", "x2", "width", "height", "cx", "cy"):
            assert re.fullmatch(r"-?[0-9.]+%?", value), (tag, name, value)
        assert tag == "rect" or name not in ("width", "height") or not value.startswith("-")
    return walk


# The page


@pytest.mark.parametrize("count", [0, 1, 5, 500])
def test_a_page_is_whole_for_any_number_of_tensors(count):
    one = saved(count=count)
    walk = check(page({"net": one}))
    assert walk.names.count("tr") >= count + 1
    assert len(re.findall(r'<div class="bar">', page({"net": one}))) == min(40, count + 1)
    assert ("smaller tensors" in " ".join(walk.words)) == (count == 500)


def test_page_and_table_have_the_notes_of_a_result():
    note = "The first of <2> outputs was read."
    one = saved(notes=(note,))
    assert note in " ".join(check(page({"net": one})).words)
    console = Console(width=200)
    with console.capture() as told:
        console.print(result_table(result(notes=(note,)), "net.wf"))
    assert f"note: {note}" in told.get()


def test_a_page_says_what_the_file_is():
    one = saved()
    words = " ".join(" ".join(check(page({"net": one})).words).split())
    for told in (
        f"{one.size_bytes:,} bytes",
        f"{one.rate:.3f}",
        f"{one.limit:.3f}",
        "0.002",
        "nats of KL",
        "kronecker",
    ):
        assert told in words
    assert "3 bit per value" in words and "measured by kronecker^0.5" in words
    assert f"{one.distortion / one.predicted:.3g}" in words


NEW = {
    "predicted_distortion": 0.0031,
    "held_out_distortion": 0.0032,
    "untuned_distortion": 0.0053,
    "importance_error": 0.04,
}


def test_all_that_was_predicted_and_measured_has_a_line_of_its_own():
    text = page({"one": saved(target={"distortion": 0.004}, **NEW), "two": saved()})
    words = " ".join(" ".join(check(text).words).split())
    for told in ("asked 0.00400", "predicted 0.00310", "before tuning 0.00530", "measured 0.00200", "held out 0.00320"):
        assert told in words
    plot = next(each for each in re.findall(r"<svg.*?</svg>", text) if 'aria-label="Distortion: ' in each)
    heights = [int(y) for y in re.findall(r'class="value" x="[^"]+" y="(\d+)"', plot)]
    assert len(heights) == 7 and min(np.diff(heights)) >= 20
    assert "measured before tuning" in words and "on held-out batches" in words and "nothing was fitted to" in words
    for row in saved().tensors[:-1]:
        assert f"{100 * row.distortion / saved().sum_of_tensors:.1f} %" in words
    plain_words = " ".join(check(page({"two": saved()})).words)
    assert not any(name in plain_words for name in ("before tuning", "held out", "Held out", "held-out"))


def test_batches_that_were_not_held_out_are_not_shown_as_if():
    assert "held out" not in page({"net": saved(held_out_distortion=0.002)})


def test_the_same_results_make_the_same_page():
    assert page({"net": saved()}) == page({"net": saved()})


def test_the_file_lies_to_the_right_of_the_curve_by_the_gap():
    text = page({"net": saved()})
    mark = re.search(r'<line class="gap tone-a" x1="([0-9.]+)%" x2="([0-9.]+)%" y1="([0-9.]+)"', text)
    left, right, y = map(float, mark.groups())
    assert (right - left) / right == pytest.approx(saved().gap / saved().rate, abs=2e-3)
    path = re.search(r'<path class="limit"[^>]* d="M([^"]+)"', text)[1]
    points = np.array([list(map(float, point.split(","))) for point in path.split(" L")])
    assert np.interp(left, points[:, 0] / 10, points[:, 1]) == pytest.approx(y, abs=1.5)


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_text_and_nothing_else(name):
    one = saved(name=name, importance=name, limit_measure=name)
    text = page({name: one, "other": saved(count=2)})
    check(text)
    check(page({name: one}))
    assert name not in text.replace(f"<title>{name}", "")
    text.encode()


def test_two_results_stand_beside_each_other():
    first, second = saved(), saved(count=4, distortion=0.004, target={"distortion": 0.005})
    text = page({"one": first, "two": second})
    words = " ".join(" ".join(check(text).words).split())
    assert "2.00 times as high" in words and "smaller than one" in words
    assert text.count('<circle class="file tone-a"') == text.count('<circle class="file tone-b"') == 2
    row = re.search(r"<tr>(?:(?!</tr>).)*layer\.1\.weight(?:(?!</tr>).)*</tr>", text)[0]
    assert re.findall(r'data-value="([^"]*)"', row)[4] == "0.0"
    assert "asked 0.005" in words


def test_a_tensor_that_only_one_of_two_has_is_in_the_table():
    text = page({"one": saved(count=1), "two": saved(count=3)})
    assert "not in one" in text
    row = re.search(r"<tr>(?:(?!</tr>).)*layer\.2\.weight(?:(?!</tr>).)*</tr>", text)[0]
    assert 'data-value=""' in row


def test_curves_of_different_measures_are_told_apart():
    other = saved(limit_measure="kl", limit_curve=tuple((bits / 4, 2.0 ** -(bits / 2.5)) for bits in range(40)))
    text = page({"one": saved(), "two": other})
    assert "own curve only" in text and 'class="limit tone-b"' in text and "out of reach" not in text


@pytest.mark.parametrize("count", [0, 3])
def test_only_one_or_two_results_fit(count):
    with pytest.raises(UsageError, match=f"Got {count} results; expected one, or two"):
        page({str(index): saved() for index in range(count)})


OLD = ("limit_curve", "limit_distortion", "distortion_unit")


def test_a_result_without_a_curve_says_so():
    told = json.loads(result().to_json())
    old = parse(json.dumps({name: value for name, value in told.items() if name not in OLD}))
    words = " ".join(" ".join(check(page({"net": old})).words).split())
    assert "has no curve of the limit" in words and f"limit {old.limit:.3f}" in words
    assert "out of reach" not in words


@pytest.mark.parametrize(
    "changes",
    [
        {"distortion": None, "target": {}},
        {"distortion": math.nan},
        {"distortion": math.inf, "target": {"distortion": 0.1}},
        {"distortion": 0.0, "water_level": 0.0},
        {"limit": 0.0},
        {"limit": 50.0},
        {"importance": "identity", "distortion_unit": "squared weight"},
        {"limit_curve": ((0.0, 0.0), (1.0, 0.0))},
        {"limit_curve": ((0.0, 1.0), (1.0, math.nan))},
        {"limit_curve": ((0.0, 1.0),), "limit_distortion": 5.0},
        {"limit_distortion": 0.0},
        {"floating_values": 0, "original_bytes": 0},
        {"tensors": (), "overhead_bytes": 0.0},
        {"tensors": (tensor(0, distortion=0.0), TensorReport("e", (0,), 0, 0.0, 0.0, 0.0, "exact"))},
        {"tensors": (tensor(0, distortion=math.nan), tensor(1, distortion=math.inf))},
        {"overhead_bytes": math.nan, "limit_error": math.nan},
        {"importance_error": math.nan},
        {"predicted_distortion": math.nan, "held_out_distortion": math.inf, "untuned_distortion": 0.0},
    ],
)
def test_whatever_is_missing_or_extreme_leaves_a_page(changes):
    odd = saved(**changes)
    check(page({"odd": odd}))
    check(page({"odd": odd, "usual": saved()}))


# Reading


def test_a_result_comes_back_as_it_was():
    made = result(**NEW)
    back = parse(made.to_json())
    for name in ("size_bytes", "rate", "ratio", "gap", "gap_percent"):
        assert getattr(back, name) == getattr(made, name)
    for field in dataclasses.fields(made):
        assert field.name == "data" or getattr(back, field.name) == getattr(made, field.name)
    assert (back.predicted, back.held_out) == (made.predicted_distortion, made.held_out_distortion)


@pytest.mark.parametrize("name", NEW)
def test_new_numbers_may_be_missing_but_not_be_words(name):
    told = json.loads(result(**NEW).to_json())
    old = parse(json.dumps({key: value for key, value in told.items() if key != name}))
    assert getattr(old, name) is None
    assert old.predicted == pytest.approx(0.0031 if name != "predicted_distortion" else old.sum_of_tensors)
    with pytest.raises(ValueError, match=name):
        parse(json.dumps(told | {name: "much"}))


BAD = {
    "not json": ("{", "no result"),
    "a list": ("[1]", "Expected `object`, got `array`"),
    "another command's": ('{"curve": [], "rate": 3}', "required field"),
    "a wrong kind": (result().to_json().replace('"numel": 100,', '"numel": "many",'), r"tensors\[0\].numel"),
    "a negative size": (re.sub(r'"size_bytes": \d+,', '"size_bytes": -1,', result().to_json()), "size_bytes|>= "),
    "an infinite size": (re.sub(r'"size_bytes": 25.0', '"size_bytes": Infinity', result().to_json()), "not finite"),
    "a negative length": (result().to_json().replace('"numel": 100,', '"numel": -100,'), "below zero"),
    "deep": ("[" * 100_000, "nested"),
    "no text": (b"\xff\xfe\x00", "no result"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_result_is_refused_in_one_sentence(case, tmp_path):
    text, why = BAD[case]
    path = tmp_path / "r.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(FormatError, match=why) as caught:
        read(path)
    told = str(caught.value)
    assert str(path) in told and "expected" in told and "Compress again" in told
    with pytest.raises(FormatError, match="cannot be read"):
        read(tmp_path / "none.json")


# Numbers, places


def test_numbers_are_told_to_three_digits():
    told = {None: NONE, 0.0: "0", 1.5: "1.50", 12345.6: "12,346", 0.00123: "0.00123", -2.5: f"{MINUS}2.50"}
    assert {number: short(number) for number in told} == told
    assert (short(1.25e-7), plain(1e-5)) == (f"1.25 {TIMES} 10⁻⁷", f"1 {TIMES} 10⁻⁵")
    assert (short(math.nan), short(math.inf)) == ("not a number", "infinite")
    assert (fixed(None), fixed(-1.234), signed(0.5), signed(None)) == (NONE, f"{MINUS}1.23", "+0.50", NONE)
    assert (plain(0.005), plain(3.0), plain(250000.0)) == ("0.005", "3", "250000")
    assert (size_text(999), size_text(101570), size_text(2.5e9)) == ("999 B", "101.6 kB", "2.5 GB")
    assert printable("a\x1b'\\") == "a\\x1b'\\"


@given(st.lists(st.floats(1e-9, 1.0), min_size=1, max_size=200), st.floats(0.3, 4.0))
def test_areas_fill_the_square_and_keep_their_sizes(areas, aspect):
    areas = sorted((area / math.fsum(areas) for area in areas), reverse=True)
    boxes = squarified(areas, aspect)
    assert [width * height for _, _, width, height in boxes] == pytest.approx(areas, rel=1e-6, abs=1e-9)
    for x, y, width, height in boxes:
        assert x >= -1e-9 and y >= -1e-9 and x + width <= 1 + 1e-6 and y + height <= 1 + 1e-6


@given(st.floats(1e-3, 1e4))
def test_ticks_are_few_and_within(high):
    found = ticks(high)
    assert found[0] == 0 and 3 <= len(found) <= 8 and found[-1] <= high * (1 + 1e-6)


@given(st.floats(-12, 3), st.floats(1.2, 12))
def test_decades_are_within(low, span):
    found = decades(low, low + span)
    assert 2 <= len(found) <= 10 and all(low < math.log10(value) < low + span for value in found)


# In a browser


def browse(tmp_path, text, *options):
    """What a browser prints about a page; one that hangs, as it may on a busy machine, is started again."""
    path = tmp_path / "page.html"
    path.write_text(text)
    for attempt in range(3):
        command = [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions",
            "--disable-background-networking", "--hide-scrollbars", "--no-first-run",
            f"--user-data-dir={tmp_path / f'profile{attempt}{len(list(tmp_path.iterdir()))}'}", *options, path.as_uri(),
        ]  # fmt: skip
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
        ) as process:
            try:
                return process.communicate(timeout=90)[0]
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
    pytest.skip("the browser does not answer")


def order_after(tmp_path, script, results):
    """Names in the order of the table, and what the page says of itself, after a script has run in it."""
    more = f"<script>const heads = [...document.querySelectorAll('thead button')]; {script}</script></body>"
    dumped = browse(tmp_path, page(results).replace("</body>", more), "--dump-dom")
    table = dumped[dumped.index('<table class="sortable"') :]
    rows = [row for row in re.findall(r"<tr[ >].*?</tr>|<tr>.*?</tr>", table, re.DOTALL) if 'scope="row"' in row]
    shown = [row for row in rows if not row.startswith("<tr hidden")]
    return [re.search(r'<th scope="row"[^>]*>([^<]*)', row)[1] for row in shown], dumped


@needs_browser
def test_a_click_sorts_by_value_and_another_turns_it_round(tmp_path):
    rows = {row.name: row for row in saved().tensors}
    names, dumped = order_after(tmp_path, "heads[4].click()", {"net": saved()})
    assert names == sorted(rows, key=lambda name: -rows[name].size_bytes)
    assert re.search(r'aria-sort="descending"><button type="button">Bytes', dumped)
    assert re.findall(r"<th [^>]*aria-sort", dumped) == ['<th scope="col" class="number" aria-sort']
    names, _ = order_after(tmp_path, "heads[6].click(); heads[6].click()", {"net": saved()})
    assert names[-1] == "steps"  # it has no limit: last in any order
    assert names[:-1] == sorted(names[:-1], key=lambda name: rows[name].limit)


@needs_browser
def test_words_are_sorted_as_people_count_and_the_filter_hides_rows(tmp_path):
    twelve = {"net": saved(count=12)}
    names, _ = order_after(tmp_path, "heads[1].focus(); document.activeElement.click()", twelve)
    assert names == [f"layer.{index}.weight" for index in range(12)] + ["steps"]
    typed = (
        "const box = document.getElementById('filter'); box.value = 'LAYER .1'; box.dispatchEvent(new Event('input'))"
    )
    names, dumped = order_after(tmp_path, typed, twelve)
    assert names == ["layer.1.weight", "layer.10.weight", "layer.11.weight"]
    assert "3 of 13 tensors" in dumped


@needs_browser
def test_hostile_names_run_nothing(tmp_path):
    hostile = {HOSTILE[0]: saved(name=HOSTILE[0]), HOSTILE[1]: saved(name=HOSTILE[1])}
    dumped = browse(tmp_path, page(hostile), "--dump-dom")
    assert "<title>taken</title>" not in dumped and dumped.count("<script>\n") == 1
    assert not re.search(r"<img", dumped)


@needs_browser
@pytest.mark.parametrize("width", [1200, 520])
def test_both_schemes_are_drawn_and_differ(tmp_path, width):
    pictures = []
    for scheme in (0, 1):
        place = tmp_path / f"{scheme}.png"
        browse(
            tmp_path, page({"one": saved(), "two": saved(count=3)}), f"--screenshot={place}",
            f"--window-size={width},1600", f"--blink-settings=preferredColorScheme={scheme}",
        )  # fmt: skip
        pictures.append(np.asarray(Image.open(place).convert("L"), float))
    dark, light = pictures
    assert dark.mean() < 80 and light.mean() > 200
    assert dark.std() > 10 and light.std() > 10
    assert dark[:, -3:].std() < 20  # nothing sticks out at the side


@needs_browser
def test_paper_shows_all_of_it_on_few_sheets(tmp_path):
    browse(
        tmp_path, page({"one": saved(count=30), "two": saved(count=28)}), "--no-pdf-header-footer",
        f"--print-to-pdf={tmp_path / 'page.pdf'}",
    )  # fmt: skip
    printed = (tmp_path / "page.pdf").read_bytes()
    sheets = len(re.findall(rb"/Type\s*/Page\b", printed))
    assert 3 <= sheets <= 7
    assert len(printed) > 20_000 * sheets  # empty ones take 500 bytes
