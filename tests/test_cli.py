"""The command line, mostly called in this process; what depends on signals and the shell in one of its own."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import safetensors.torch
import torch

import waterfill
from waterfill import cli
from waterfill._version import PRODUCER
from waterfill.cli.arguments import as_quantizers, as_size, as_tolerance
from waterfill.errors import UsageError
from waterfill.progress import STAGES, progress_bar
from waterfill.quantize import Feedback, KMeans, Prune, Scalar, Threshold, Trellis

NETS = """
import time
import torch
from torch import nn

not_callable = 3

class Raises:
    def __iter__(self):
        yield torch.randn(4, 6), torch.zeros(4, dtype=torch.long)
        raise OSError("disk gone")

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 5))

def broken(value=float("nan")):
    model = net()
    model[3].weight.data[1, 2] = value
    return model

def infinite():
    return broken(float("inf"))

def softmax():
    return nn.Sequential(*net(), nn.Softmax(1))

def narrow():
    return nn.Linear(6, 5)

def odd_names():
    model = nn.Module()
    for name in ("[/]", "[bold]x[/bold]", "tab\\tand\\x1b[31m", "n" * 300):
        model.register_parameter(name, nn.Parameter(torch.randn(9, 9)))
    return model

def grid():
    model = nn.Linear(64, 64, bias=False)
    torch.manual_seed(0)
    model.weight.data = 0.1 * torch.randint(-9, 10, (64, 64)) + 1e-6 * torch.randn(64, 64)
    return model

def no_module():
    return [1, 2]

def data():
    torch.manual_seed(1)
    model = net().eval()
    return [(x, model(x).argmax(1)) for x in torch.randn(2, 16, 6)]

def inputs():
    return [x for x, _ in data()]

def generator():
    return iter(data())

class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return ((x[row], y[row]) for x, y in data() for row in range(len(y)))

def iterable():
    return torch.utils.data.DataLoader(Stream(), batch_size=16)

def shuffled():
    return torch.utils.data.DataLoader(list(Stream()), batch_size=16, shuffle=True)

def breaks():
    yield data()[0]
    raise OSError("the disk is gone")

def empty():
    return []

def wrong_shape():
    return [(torch.randn(4, 7), torch.zeros(4, dtype=torch.long))]

def raises():
    raise ValueError("first line\\nsecond line")

def raises_later():
    return Raises()

def eight():
    return [(x[:2], y[:2]) for x, y in data() * 4]

def cross_entropy(model, batches):
    assert not model.training
    losses = [nn.functional.cross_entropy(model(x), y) for x, y in batches]
    return -float(torch.stack(losses).mean())

def same_accuracy(model, batches):
    return sum(float((model(x).argmax(1) == y).float().mean()) for x, y in batches) / len(batches)

def words(model, batches):
    return "good"

def bad_metric(model, batches):
    raise KeyError("no such key")

def nan_metric(model, batches):
    return float("nan")

def slow():
    for _ in range(600):
        print("waiting", flush=True)
        time.sleep(0.1)
        yield torch.randn(4, 6), torch.zeros(4, dtype=torch.long)
"""

MODULE = "waterfill_cli_test_nets"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a module of factories, weights and a compressed file."""
    (tmp_path / f"{MODULE}.py").write_text(NETS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    nets = __import__(MODULE)
    safetensors.torch.save_file(nets.net().state_dict(), tmp_path / "net.safetensors")
    waterfill.compress(nets.net(), size_bytes=1000).save(tmp_path / "net.wf")
    yield tmp_path
    sys.modules.pop(MODULE, None)


@pytest.fixture
def run(place, monkeypatch, capsys):
    """Run a command line here: exit code, standard output and standard error."""
    monkeypatch.chdir(place)

    def one(line):
        words = [word.replace("nets:", f"{MODULE}:") for word in line.split()]
        monkeypatch.setattr(sys, "argv", ["waterfill", *words])
        before = signal.getsignal(signal.SIGTERM)
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            signal.signal(signal.SIGTERM, before)
        told = capsys.readouterr()
        return code, told.out, told.err

    return one


def left(place):
    """Files beside the ones that the fixture made."""
    made = {f"{MODULE}.py", "net.safetensors", "net.wf", "__pycache__"}
    return sorted(path.name for path in place.iterdir() if path.name not in made)


# Commands


@pytest.mark.parametrize(
    ("text", "quantizers"),
    [("feedback", ()), ("feedback:8", (Feedback(8),)),
     ("scalar", (Scalar(),)), ("threshold", (Threshold(),)), ("kmeans:16", (KMeans(16),)), ("prune:0.1", (Prune(0.1),)),
     ("prune:.5", (Prune(0.5),)), ("prune:1", (Prune(1.0),)), ("trellis:256", (Trellis(256),))],
)  # fmt: skip
def test_quantizers_by_name(text, quantizers):
    assert as_quantizers(text) == quantizers


@pytest.mark.parametrize(("text", "kind"), [("kmeans:4", "codebook"), ("prune:0.3", "uniform")])
def test_a_quantizer_of_a_fixed_rate_needs_no_target(run, place, text, kind):
    code, out, _ = run(f"compress nets:net --data nets:data --quantizer {text} -o o.wf --json o.json")
    assert (code, json.loads((place / "o.json").read_text())["target"]) == (0, {})
    assert kind in out
    code, out, _ = run("inspect o.wf --json i.json")
    assert code == 0
    rows = {row["name"]: row for row in json.loads((place / "i.json").read_text())["tensors"]}
    assert rows["0.weight"]["reconstruction"] == kind
    assert kind != "codebook" or rows["0.weight"]["values"] == 4
    code, _, err = run(f"compress nets:net --data nets:data --quantizer {text} -o p.wf --size 100B")
    assert code == 1
    assert "size_bytes=100 is not met" in err


def test_compress_prints_a_table_and_writes_json(run, place):
    code, out, err = run(
        "compress nets:net -o out.wf --weights net.safetensors --data nets:data --size 1kB --json r.json"
    )
    assert (code, err) == (0, "")
    assert "3.weight" in out and "out.wf: " in out and "bit/value" in out
    told = json.loads((place / "r.json").read_text())
    assert told["size_bytes"] == (place / "out.wf").stat().st_size <= 1000
    assert {"0.weight", "3.bias"} <= {row["name"] for row in told["tensors"]}
    assert left(place) == ["out.wf", "r.json"]


def test_report_makes_a_page_of_one_result_or_two(run, place):
    for size in (1000, 1400):
        assert run(f"compress nets:net -o o.wf --data nets:data --size {size} --json r{size}.json --force")[0] == 0
    code, out, err = run("report r1000.json -o page.html")
    assert (code, err) == (0, "") and "page.html: a page about r1000.json" in out
    text = (place / "page.html").read_text()
    assert "0.weight" in text and 'class="limit"' in text and "nats of KL" in text
    assert run("report r1000.json r1400.json -o both.html")[0] == 0
    assert "r1000.json" not in (place / "both.html").read_text()
    (place / "other").mkdir()
    (place / "r1000.json").rename(place / "other" / "r1400.json")
    assert run("report r1400.json other/r1400.json -o same.html")[0] == 0
    assert "other/r1400.json" in (place / "same.html").read_text()


def test_report_refuses_what_it_cannot_do_and_leaves_nothing(run, place):
    (place / "page.html").write_text("mine")
    (place / "bad.json").write_text('{"size_bytes": 3}')
    assert run("compress net.safetensors -o o.wf --size 1kB --json r.json")[0] == 0
    for line, code, why in (
        ("report r.json -o page.html", 1, "exists"),
        ("report r.json -o r.json --force", 2, "is an input"),
        ("report r.json r.json -o two.html", 2, "given twice"),
        ("report bad.json -o new.html", 1, "bad.json is no result of a compression: expected"),
        ("report r.json bad.json -o page.html --force", 1, "bad.json"),
        ("report none.json -o new.html", 1, "none.json cannot be read"),
        ("report net.wf -o new.html", 1, "net.wf is no result"),
    ):
        found, _, err = run(line)
        assert (found, len(err.splitlines())) == (code, 1) and why in err, line
    assert (place / "page.html").read_text() == "mine"
    assert left(place) == ["bad.json", "o.wf", "page.html", "r.json"]
    assert run("report r.json -o page.html --force")[0] == 0
    assert "<!DOCTYPE html>" in (place / "page.html").read_text()


def test_compress_with_a_trellis(run, place):
    code, out, _ = run("compress net.safetensors -o out.wf --size 1.5KiB --quantizer trellis:8 --json r.json")
    assert code == 0 and "path, 8 states" in out
    run("inspect out.wf --json i.json")
    kinds = [
        {row["name"]: row["reconstruction"] for row in json.loads((place / name).read_text())["tensors"]}
        for name in ("r.json", "i.json")
    ]
    assert kinds[0]["0.weight"] == kinds[1]["0.weight"] == "path, 8 states"
    assert run("compress net.safetensors -o out.wf --size 1.5KiB --quantizer trellis:7")[0] in (1, 2)


def test_compress_a_bare_file(run):
    assert run("compress net.safetensors -o out.wf --size 1.5KiB")[0] == 0
    assert set(waterfill.decompress("out.wf")) == set(safetensors.torch.load_file("net.safetensors"))


def test_decompress_gives_ordinary_safetensors(run):
    code, out, _ = run("decompress net.wf -o out.safetensors")
    assert code == 0 and "out.safetensors: 9 tensors" in out
    tensors, expected = safetensors.torch.load_file("out.safetensors"), waterfill.decompress("net.wf")
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_tensors_that_take_more_than_allowed_are_refused(run, place):
    for command in ("decompress net.wf -o most.safetensors", "inspect net.wf"):
        code, _, text = run(f"{command} --max-bytes 1kB")
        assert code == 1 and "bytes, but at most 1,000 are allowed; raise max_bytes (--max-bytes)" in text
        assert run(f"{command} --max-bytes 1MB")[0] == 0
        assert run(f"{command} --max-bytes much")[0] == 2
    assert (place / "most.safetensors").exists()


def test_inspect_lists_the_tensors(run, place):
    code, out, _ = run("inspect net.wf --json i.json")
    assert code == 0 and "0.weight" in out and "all checksums are right" in out
    told = json.loads((place / "i.json").read_text())
    assert told["size_bytes"] == (place / "net.wf").stat().st_size
    assert told["rate"] == pytest.approx(8 * told["size_bytes"] / told["floating_values"])
    rows = {row["name"]: row for row in told["tensors"]}
    assert rows["3.weight"]["shape"] == [5, 32] and rows["1.num_batches_tracked"]["reconstruction"] == "exact"


def test_a_plain_file_says_that_it_is_one(run, place):
    assert run("compress nets:net -o plain.wf --plain")[0] == 0
    code, out, _ = run("inspect plain.wf --json i.json")
    assert code == 0 and "as a plain file; all checksums are right" in " ".join(out.split())
    assert json.loads((place / "i.json").read_text())["plain"] is True
    assert run("inspect net.wf --json j.json")[0] == 0
    assert json.loads((place / "j.json").read_text())["plain"] is False


def test_evaluate_with_and_without_a_file(run, place):
    code, out, _ = run("evaluate nets:net --data nets:data --json e.json")
    assert code == 0 and "accuracy" in out
    assert json.loads((place / "e.json").read_text())["original"]["accuracy"] == 1
    code, out, _ = run("evaluate nets:net net.wf --data nets:generator --weights net.safetensors --json e.json")
    told = json.loads((place / "e.json").read_text())
    assert code == 0 and 0 < told["compressed"]["kl"] < 1 and told["original"]["samples"] == 32


def test_networks_that_return_probabilities(run, place):
    note = "note: The outputs sum to 1 over the classes and were read as probabilities."
    code, out, _ = run("compress nets:softmax -o o.wf --data nets:data --size 1kB --json o.json")
    assert code == 0 and note in out and json.loads((place / "o.json").read_text())["notes"]
    code, out, _ = run("evaluate nets:softmax o.wf --data nets:data --json e.json")
    told = json.loads((place / "e.json").read_text())["compressed"]
    assert code == 0 and note in out and told["kl"] > 0 and told["notes"]
    code, out, _ = run("bound nets:softmax --data nets:data --json b.json")
    assert code == 0 and note in out and json.loads((place / "b.json").read_text())["notes"]
    code, out, _ = run("bound nets:softmax --data nets:inputs --output probabilities")
    assert code == 0 and note not in out
    code, _, error = run("compress nets:softmax -o p.wf --data nets:inputs --output logits")
    assert code == 1 and "probabilities, not logits" in error


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ("--rate 8", "rate"),
        ("--size 1kB", "size_bytes"),
        ("--distortion 0.01 --data nets:data", "distortion"),
        ("--tolerance 10pt --data nets:data", "tolerance"),
        ("--tolerance 10% --data nets:data", "tolerance"),
        ("--size 64KiB --data nets:inputs --output values", "size_bytes"),
        ("--size 1000 --data nets:inputs --output logits --temperature 2", "size_bytes"),
        ("--size 1000B --importance identity --effort best --no-fold-norms", "size_bytes"),
        ("--size 1500 --plain", "size_bytes"),
        ("--size 2000 --importance weight_scale --include 3.* --exclude 3.bias --seed 4", "size_bytes"),
        ("--size 1000 --importance regression --data nets:inputs --output values", "size_bytes"),
        ("--size 1000 --importance kronecker --data nets:data --temperature 2", "size_bytes"),
        ("--size 1000 --importance gradient --data nets:data --temperature 2", "size_bytes"),
        ("--size 1000 --importance hessian --data nets:data --seed 3", "size_bytes"),
        ("--size 1000 --importance gradient_hessian --data nets:data --temperature 2", "size_bytes"),
    ],
)
def test_options_of_compress(run, place, options, key):
    code, _, err = run(f"compress nets:net -o out.wf --json r.json {options}")
    assert (code, err) == (0, "")
    assert list(json.loads((place / "r.json").read_text())["target"]) == [key]


def block(out):
    """The lines at the end of what compress prints: what was asked, predicted and measured."""
    names = ("asked", "predicted", "measured", "held out", "before tuning", "price error")
    lines = [re.split(r"  +", line.strip(), maxsplit=1) for line in out.splitlines()]
    return {line[0]: line[1] for line in lines if line[0] in names}


def test_tuning_is_reported_apart(run, place):
    code, out, err = run("compress nets:net --data nets:eight --size 900 --tune --effort fast -o o.wf --json r.json")
    told, lines = json.loads((place / "r.json").read_text()), block(out)
    assert (code, err) == (0, "")
    assert list(lines) == ["asked", "predicted", "measured", "held out", "before tuning"]
    assert lines["asked"] == "900 bytes"
    unit = "nats of KL"
    assert lines["predicted"] == f"{told['predicted_distortion']:.4g} {unit}, by the importance"
    assert lines["measured"] == f"{told['distortion']:.4g} {unit} on the calibration data"
    assert lines["held out"].startswith(f"{told['held_out_distortion']:.4g} {unit} on those of its batches")
    assert lines["before tuning"] == f"{told['untuned_distortion']:.4g} {unit} on the calibration data"
    assert run("report r.json -o page.html")[0] == 0
    page = (place / "page.html").read_text()
    assert all(f">{name} " in page for name in ("predicted", "before tuning", "measured", "held out"))


def test_only_what_there_is_has_a_line(run):
    assert list(block(run("compress net.safetensors --size 1kB -o a.wf")[1])) == ["asked", "predicted"]
    assert list(block(run("compress nets:net --data nets:data --quantizer kmeans:4 -o b.wf")[1])) == [
        "predicted",
        "measured",
    ]
    lines = block(run("compress nets:net --data nets:data --size 1kB --importance identity --effort fast -o c.wf")[1])
    assert "squared weight" in lines["predicted"] and "not what is measured" in lines["predicted"]
    assert " distortion on the calibration data" in lines["measured"]


def test_a_tolerance_is_in_the_unit_of_a_metric(run, place):
    line = "compress nets:net --data nets:data --effort fast --json r.json"
    code, out, err = run(f"{line} --metric nets:cross_entropy --tolerance 5e-2 -o o.wf")
    assert (code, err) == (0, "")
    assert json.loads((place / "r.json").read_text())["target"] == {"tolerance": 0.05}
    assert block(out)["asked"] == f"a loss of 0.05 in {MODULE}:cross_entropy"
    nets = sys.modules[MODULE]
    with torch.no_grad():
        before = nets.cross_entropy(nets.net().eval(), nets.data())
        after = nets.cross_entropy(waterfill.load("o.wf", into=nets.net()).eval(), nets.data())
    assert before - after <= 0.05
    assert run(f"{line} --metric nets:same_accuracy --tolerance 0.1 -o p.wf")[0] == 0
    assert run(f"{line} --tolerance 10pt -o q.wf")[0] == 0
    assert (place / "p.wf").read_bytes() == (place / "q.wf").read_bytes()


@pytest.mark.parametrize(
    ("text", "size"),
    [("100kB", 100_000), ("64KiB", 65536), ("5000", 5000), ("1.5MB", 1_500_000), ("2 GiB", 2**31), (".5kb", 500)],
)
def test_sizes(text, size):
    assert as_size(text) == size


@pytest.mark.parametrize("text", ["", "kB", "12 apples", "1e3", "-5", "1,000"])
def test_sizes_that_are_none(text):
    with pytest.raises(UsageError, match="--size"):
        as_size(text)


@pytest.mark.usefixtures("place")
def test_a_percentage_is_one_of_the_accuracy():
    nets = sys.modules[MODULE]
    half = [(x, torch.where(torch.arange(16) < 8, y, (y + 1) % 5)) for x, y in nets.data()]
    assert as_tolerance("0.5pt", nets.net(), half, None) == pytest.approx(0.005)
    assert as_tolerance("0.5%", nets.net(), half, None) == pytest.approx(0.0025)


@pytest.mark.parametrize("kind", ["generator", "iterable", "shuffled"])
def test_data_that_can_be_read_once_are_enough(run, kind):
    assert run(f"compress nets:net -o out.wf --tolerance 30% --data nets:{kind} --effort fast")[0] == 0
    code, _, _ = run(f"evaluate nets:net out.wf --data nets:{kind} --weights net.safetensors --json e.json")
    told = json.loads(Path("e.json").read_text())
    assert code == 0
    assert told["original"]["samples"] == told["compressed"]["samples"] == 32
    assert told["compressed"]["kl"] >= 0


@pytest.mark.parametrize("line", ["compress nets:net -o out.wf --rate 6", "evaluate nets:net"])
def test_data_that_break_off_are_named(run, line):
    code, _, err = run(f"{line} --data nets:breaks")
    assert code == 1
    assert re.search(r"--data \S+:breaks failed at batch 1: OSError: the disk is gone", " ".join(err.split()))


def test_names_are_shown_as_they_are(run):
    code, out, _ = run("compress nets:odd_names -o out.wf --size 3kB")
    assert code == 0
    for name in ("[/]", "[bold]x[/bold]", r"tab\tand\x1b[31m"):
        assert name in out
    assert "\x1b" not in out and out.count("n" * 20)
    assert "[bold]x[/bold]" in run("inspect out.wf")[1]


def test_errors_have_no_control_characters(run):
    code, _, err = run("inspect \x1b]0;title\x07.wf")
    assert code == 1
    assert "\x1b" not in err and r"\x1b]0;title\x07.wf" in err


def test_compress_and_inspect_print_the_limit(run):
    code, out, _ = run("compress nets:net -o out.wf --size 900 --data nets:data --json r.json")
    assert code == 0
    assert "limit" in out and "gap" in out and "bit/value above it" in " ".join(out.split())
    assert "proven for the average over such networks, not for this one" in " ".join(out.split())
    result = json.loads(Path("r.json").read_text())
    code, out, _ = run("inspect out.wf --json i.json")
    found = json.loads(Path("i.json").read_text())
    assert code == 0 and "bit/value above it" in " ".join(out.split())
    assert found["limit"] == pytest.approx(result["limit"], abs=0.01)
    assert found["limit_measure"] == result["limit_measure"]
    assert found["overhead_bytes"] == pytest.approx(result["overhead_bytes"])
    for row, other in zip(found["tensors"], result["tensors"], strict=True):
        assert row["rate"] == pytest.approx(other["rate"])
        if len(row["shape"]) > 1:
            assert row["limit"] == pytest.approx(other["limit"], abs=0.006)


def test_inspect_explains_a_rate_below_its_limit(run):
    assert run("compress nets:grid -o out.wf --rate 8")[0] == 0
    out = " ".join(run("inspect out.wf")[1].split())
    assert out.count("below it: chance in the fit, or structure that the source model lacks") == 2


def test_bound_shows_the_curve_and_the_tensors(run, place):
    code, out, _ = run("bound nets:net --data nets:data --rate 2 --json b.json -o b.svg")
    assert code == 0
    parsed = json.loads((place / "b.json").read_text())
    assert len([line for line in out.splitlines() if "█" in line]) == len(parsed["curve"])
    assert "nats of KL" in out and "0.weight" in out and "At 2 bit/value" in out
    assert (place / "b.svg").read_text().startswith("<?xml")
    code, out, _ = run(f"bound nets:net --data nets:data --distortion {parsed['distortion']} --json c.json")
    assert code == 0 and json.loads((place / "c.json").read_text())["rate"] == pytest.approx(2)
    code, out, _ = run("bound net.safetensors --include 3.*")
    assert code == 0 and "without loss are in every rate" in out and "At 4 bit/value" not in out


def test_an_output_that_exists_is_replaced_only_by_force(run, place):
    before = (place / "net.wf").read_bytes()
    code, _, err = run("compress nets:net -o net.wf --size 900")
    assert code == 1 and "net.wf exists" in err and "--force" in err
    assert (place / "net.wf").read_bytes() == before
    assert run("compress nets:net -o net.wf --size 900 --force")[0] == 0
    assert (place / "net.wf").stat().st_size <= 900
    assert run("decompress net.wf -o net.safetensors")[0] == 1
    assert run("decompress net.wf -o net.safetensors --force")[0] == 0


# Errors


def refused(run, place, line, code, *parts):
    """One line on standard error that has all parts, this exit code, and nothing written."""
    files = left(place)
    found, out, err = run(line)
    assert found == code, err
    assert out == ""
    assert err.startswith("waterfill: ") and err.count("\n") == 1 and err.endswith("\n"), err
    for part in parts:
        assert part in err, err
    assert left(place) == files


BAD = [
    ("compress missing.safetensors -o o.wf", 1, ("missing.safetensors", "expected", "Check")),
    ("compress nets -o o.wf", 1, ("nets", "package.module:factory")),
    ("compress nets:net --weights missing.safetensors -o o.wf", 1, ("missing.safetensors", "does not exist")),
    ("compress nets:narrow --weights net.safetensors -o o.wf", 1, ("net.safetensors", "weight")),
    ("compress net.safetensors --weights net.safetensors -o o.wf", 2, ("--weights", "net.safetensors", "factory")),
    ("compress . -o o.wf", 1, ("Model directory . has no config.json", "expected a Hugging Face model directory")),
    ("compress net.wf -o o.wf", 1, ("net.wf", "compressed already", "waterfill decompress")),
    ("compress nets:net -o o.wf --rate 2 --size 1kB", 2, ("--rate and --size", "expected one target")),
    ("compress nets:net -o o.wf --rate 0", 2, ("rate=0", "expected a number above zero")),
    ("compress nets:net -o o.wf --rate nan", 2, ("rate=nan", "expected")),
    ("compress nets:net -o o.wf --rate 0.01", 1, ("below the floor of", "ask for more")),
    (
        "compress nets:net -o o.wf --output scores",
        2,
        ("--output 'scores'", "expected one of logits, values, probabilities"),
    ),
    ("compress nets:net -o o.wf --importance magic", 2, ("--importance 'magic'", "expected one of")),
    ("compress nets:net -o o.wf --quantizer magic", 2, ("--quantizer 'magic'", "feedback, feedback:64 or trellis:64")),
    ("compress nets:net -o o.wf --quantizer kmeans", 2, ("--quantizer 'kmeans'", "kmeans:16")),
    ("compress nets:net -o o.wf --quantizer kmeans:few", 2, ("--quantizer 'kmeans:few'", "kmeans:16")),
    ("compress nets:net -o o.wf --quantizer scalar:3", 2, ("--quantizer 'scalar:3'", "prune:0.1")),
    ("compress nets:net -o o.wf --quantizer kmeans:0", 2, ("k=0", "expected 1 to 65536")),
    ("compress nets:net -o o.wf --quantizer prune:1.5", 2, ("keep=1.5", "above 0, at most 1")),
    ("compress nets:net -o o.wf --effort magic", 2, ("--effort 'magic'", "fast, default, best, max")),
    ("compress nets:net -o o.wf --size many", 2, ("--size 'many'", "expected a number")),
    ("compress nets:net -o o.wf --tolerance 0.5", 2, ("--tolerance '0.5'", "0.5pt", "0.5%")),
    ("compress nets:net -o o.wf --tolerance 0.5%", 1, ("--tolerance", "--data")),
    ("compress nets:net -o o.wf --tune", 1, ("--tune", "there are none", "--data")),
    ("compress nets:net -o o.wf --metric nets:words", 2, ("--metric", ":words", "--tolerance")),
    (
        "compress nets:net -o o.wf --metric nets:words --tolerance 1pt",
        2,
        ("'1pt'", "--metric", "accuracy", "0.5"),
    ),
    ("compress nets:net -o o.wf --metric nets:words --tolerance 1", 1, ("tolerance=1", "pass data")),
    ("compress nets:net -o o.wf --metric words --tolerance 1", 2, ("--metric 'words'", "package.module:function")),
    ("compress nets:net -o o.wf --metric nets:missing --tolerance 1", 1, ("--metric", ":missing", "expected", "Check")),
    ("compress nets:net -o o.wf --metric nets:not_callable --tolerance 1", 1, ("--metric", "int", "(model, batches)")),
    (
        "compress nets:net -o o.wf --data nets:data --metric nets:words --tolerance 1",
        1,
        (":words gives a str",),
    ),
    (
        "compress nets:net -o o.wf --data nets:data --metric nets:bad_metric --tolerance 1",
        1,
        ("bad_metric failed: KeyE",),
    ),
    ("compress nets:net -o o.wf --data nets:data --metric nets:nan_metric --tolerance 1", 1, ("gives NaN", "expected")),
    (
        "compress nets:net -o o.wf --data nets:data --metric nets:cross_entropy --tolerance -1",
        2,
        ("above zero",),
    ),
    ("compress nets:net -o o.wf --distortion 0.1", 1, ("distortion=0.1", "pass data")),
    ("compress nets:net -o o.wf --data nets:inputs", 1, ("no targets", "output='logits'", "output='values'")),
    ("compress nets:broken -o o.wf", 1, ("'3.weight' [5, 32]", "NaN or infinite", "expected finite", "exclude")),
    ("compress nets:infinite -o o.wf", 1, ("'3.weight' [5, 32]", "NaN or infinite")),
    ("compress nets:net -o o.wf --data nets:empty", 1, ("no batches", "expected at least one")),
    ("compress nets:net -o o.wf --data nets:wrong_shape", 1, ("Batch 0", "float32[4, 7]", "Expected", "give")),
    ("compress nets:net -o o.wf --data nets:raises", 1, ("--data", ":raises", "ValueError: first line second line")),
    ("compress nets:net -o o.wf --data nets:raises_later", 1, (":raises_later", "batch 1", "disk gone")),
    ("compress nets:net -o o.wf --data nets:not_callable", 1, (":not_callable", "int", "expected a callable")),
    ("compress nets:net -o o.wf --data nets:missing", 1, (":missing", "expected", "Check")),
    ("compress nets:net -o o.wf --data no_such_package:data", 1, ("no_such_package", "expected", "PYTHONPATH")),
    ("compress nets:net -o o.wf --data data.npz", 2, ("--data 'data.npz'", "package.module:factory")),
    ("compress nets:no_module -o o.wf", 1, (":no_module", "list", "expected a torch.nn.Module")),
    ("compress nets:net -o o.wf --exclude typo*", 1, ("'typo*'", "matches no tensor")),
    ("compress nets:net -o missing/o.wf", 1, ("missing does not exist", "create it")),
    ("compress nets:net -o .", 1, ("Output .", "is a folder", "expected a file name")),
    ("compress nets:net -o o.wf --json missing/r.json", 1, ("missing does not exist",)),
    ("compress nets:net -o o.wf --json o.wf", 2, ("--out and --json", "o.wf")),
    ("compress nets:net -o net.wf", 1, ("net.wf exists", "--force")),
    ("evaluate nets:net", 2, ("--data",)),
    ("evaluate net.safetensors --data nets:data", 2, ("net.safetensors", "package.module:factory")),
    ("evaluate nets:narrow net.wf --data nets:data", 1, ("weight",)),
    ("evaluate nets:net missing.wf --data nets:data", 1, ("missing.wf", "expected")),
    ("bound nets:net --data nets:data --rate 2 --distortion 1", 2, ("--rate and --distortion", "one")),
    ("bound nets:net --rate 0", 2, ("Rate 0.0", "above zero")),
    ("bound nets:net --distortion -1", 2, ("Distortion -1.0", "above zero")),
    ("bound nets:net -o b.jpg", 2, ("b.jpg", ".png, .svg or .pdf")),
    ("bound nets:net --distortion 1e30", 2, ("--distortion 1e+30", "ask for less")),
    ("bound net.safetensors --json net.safetensors", 2, ("net.safetensors is an input", "another file")),
    ("inspect net.wf --json net.wf", 2, ("net.wf is an input", "another file")),
    ("decompress net.wf -o net.wf --force", 2, ("net.wf is an input", "another file")),
    ("bound nets:net -o nowhere/b.png", 1, ("nowhere",)),
    ("bound nets:net --importance kl", 1, ("kl", "there are none", "pass data")),
    ("bound nets:net --data nets:wrong_shape", 1, ("Batch 0", "Expected")),
    ("bound nets:broken", 1, ("3.weight", "NaN")),
    ("bound missing.safetensors", 1, ("missing.safetensors", "expected")),
    ("inspect missing.wf", 1, ("missing.wf", "expected")),
    ("inspect net.safetensors", 1, ("net.safetensors", "not a waterfill file")),
    ("decompress . -o o.safetensors", 1, (".", "directory")),
]


@pytest.mark.parametrize(("line", "code", "parts"), BAD, ids=[line for line, _, _ in BAD])
def test_bad_input_is_refused_in_one_line(run, place, line, code, parts):
    refused(run, place, line, code, *parts)


def test_a_pickle_is_refused_with_the_line_that_converts_it(run, place):
    torch.save(sys.modules[MODULE].net().state_dict(), "net.pth")
    expected = 'safetensors.torch.save_file(torch.load("net.pth", weights_only=True), "net.safetensors")'
    refused(run, place, "compress net.pth -o o.wf", 1, "net.pth", expected)
    refused(run, place, "compress nets:net --weights net.pth -o o.wf", 1, "net.pth", expected)
    (place / "net.safetensors").unlink()
    exec(expected, {"safetensors": safetensors, "torch": torch})
    assert run("compress nets:net --weights net.safetensors -o o.wf --size 1kB")[0] == 0


@pytest.mark.parametrize(
    "command", ["inspect bad.wf", "decompress bad.wf -o o.safetensors", "evaluate nets:net bad.wf --data nets:data"]
)
@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_file_is_refused(run, place, command, damage):
    whole = bytearray((place / "net.wf").read_bytes())
    if damage == "flip":
        whole[len(whole) // 2] ^= 4
    (place / "bad.wf").write_bytes({"flip": whole, "cut": whole[:-20], "empty": b""}[damage])
    refused(run, place, command, 1, "bad.wf")


def test_a_folder_that_cannot_be_written_is_refused(run, place, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    refused(run, place, "compress nets:net -o o.wf", 1, "is not writable", "permissions")


def test_a_disk_that_is_full_leaves_nothing_behind(run, place, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refused(run, place, "decompress net.wf -o o.safetensors", 1, "o.safetensors", "No space left on device")


@pytest.mark.parametrize(
    "line", ["bogus", "compress nets:net --bogus", "compress nets:net -o o.wf --rate many", "compress"]
)
def test_wrong_usage_exits_with_2(run, place, line):
    code, out, err = run(line)
    assert code == 2 and out == "" and "Error" in err
    assert left(place) == []


class Terminal(io.StringIO):
    """What a person sees, as text."""

    def isatty(self):
        return True


def test_bars_have_names_and_rounds_and_the_time_left(monkeypatch):
    now, terminal = [1000.0], Terminal()
    monkeypatch.setattr("rich.console.monotonic", lambda: now[0])
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar() as progress:
        for stage in ("sequence", "curves", "tune"):
            for done in range(1, 5):
                now[0] += 50.0  # slower than the half minute that rich looks back by itself
                progress(stage, done, 10)
        progress("quantize", 1, 1)
        progress("quantize", 1, 1)
        progress("own stage", 1, 2)
    seen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    last = seen[seen.rindex("correcting targets") :]
    for name in ("correcting targets", "measuring curves", "tuning", "quantizing, round 2", "own stage"):
        assert name in last
    assert last.count("4/10 0:05:00") == 3
    assert "quantizing, round 3" not in seen


def test_every_stage_has_a_name():
    told = "".join(path.read_text() for path in Path(waterfill.__file__).parent.rglob("*.py"))
    assert set(re.findall(r'(?:progress|tell)\((?:(?:self\.)?progress, )?"(\w+)", ', told)) == set(STAGES)


def test_no_bar_without_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress_bar() as progress:
        assert progress is None


@pytest.mark.parametrize(
    "line",
    [
        "compress nets:net -o loop --rate 4 --force",
        "compress nets:net -o out.wf --rate 4 --json loop",
        "decompress net.wf -o loop",
        "report loop -o page.html",
        "report result.json loop -o page.html",
    ],
)
def test_a_link_that_leads_to_itself_is_one_line(run, place, line):
    (place / "loop").symlink_to("loop")
    before = left(place)
    code, out, err = run(line)
    assert (code, out, err.count("\n")) == (1, "", 1) and "loop is a link that leads to itself" in err
    assert left(place) == before


# Processes of their own


def start(place, *words, **options):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "waterfill", *words]
    options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=place, env=environment, preexec_fn=not_in_background, **options)


def not_in_background():
    """Listen to SIGINT again, which a shell lets the commands of its background ignore."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_the_module_is_the_command(place):
    process = start(place, "inspect", "net.wf", stdin=subprocess.DEVNULL)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "") and "0.weight" in out
    process = start(place, "inspect", "missing.wf")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "") and err.startswith("waterfill: missing.wf") and err.count("\n") == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_command_that_is_stopped_writes_nothing(place, number, code):
    process = start(place, "compress", f"{MODULE}:net", "-o", "o.wf", "--data", f"{MODULE}:slow", "--size", "1kB")
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.2)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert left(place) == []


def test_killed_while_it_writes_leaves_no_half_file(place):
    script = (
        "import os, signal, sys; from pathlib import Path; from waterfill.atomic import write_atomically\n"
        "def parts():\n    yield b'x' * 100000\n    os.kill(os.getpid(), int(sys.argv[1]))\n    yield b'y'\n"
        "write_atomically(Path('o.wf'), parts())"
    )
    done = subprocess.run([sys.executable, "-c", script, str(int(signal.SIGKILL))], cwd=place, check=False)
    assert done.returncode == -9
    assert "o.wf" not in left(place) and all(name.endswith(".part") for name in left(place))


def test_the_version_is_that_of_the_package_and_of_the_project(run):
    assert run("--version") == (0, f"waterfill {waterfill.__version__}\n", "")
    settings = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert settings["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "waterfill._version.__version__"}
    text = (Path(waterfill.__file__).parent / "_version.py").read_text()
    assert f'__version__ = "{waterfill.__version__}"\n' in text
    assert f"waterfill {waterfill.__version__}" == PRODUCER
