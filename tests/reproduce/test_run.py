import dataclasses
import json
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from waterfill.errors import UsageError, WaterfillError
from waterfill.reproduce import EXPERIMENTS, Options, reproduce
from waterfill.reproduce.experiments import REGULARISERS, TEMPERATURES, Sweep
from waterfill.reproduce.figures import draw
from waterfill.reproduce.summary import reproduction_table
from waterfill.zoo.training import Recipe


def perceptron(width):  # noqa: ARG001
    layers = OrderedDict(flatten=nn.Flatten(), fc1=nn.Linear(784, 8), relu=nn.ReLU(), fc2=nn.Linear(8, 10))
    return nn.Sequential(layers)


TINY = dataclasses.replace(
    EXPERIMENTS["mnist"],
    network=perceptron,
    recipe=Recipe(epochs=4, batch_size=32),
    validation=64,
    keeps=(0.05, 0.3),
    codebooks=(2, 5),
    sweeps=(
        Sweep(11, "temperature", (0.05,), ("gradient",)),
        Sweep(12, "mu", (0.05,), ("hessian", "gradient+hessian")),
    ),
)
OPTIONS = Options(samples=64)


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    """A data set in the place and form of MNIST: a pattern for each class, and noise."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    patterns = rng.integers(0, 160, (10, 28, 28))
    arrays = {}
    for split, count in (("train", 512), ("test", 200)):
        labels = rng.integers(0, 10, count)
        noise = rng.integers(-90, 90, (count, 28, 28))
        arrays[f"{split}_images"] = np.clip(patterns[labels] + noise, 0, 255).astype(np.uint8)
        arrays[f"{split}_labels"] = labels.astype(np.uint8)
    np.savez(root / "mnist.npz", **arrays)
    return root


@pytest.fixture(autouse=True)
def data_folder(data_root, monkeypatch):
    monkeypatch.setenv("WATERFILL_DATA", str(data_root))


@pytest.fixture(scope="module")
def finished(data_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WATERFILL_DATA", str(data_root))
        return folder, reproduce(TINY, folder, OPTIONS)


def test_every_point_of_every_objective_is_there(finished):
    folder, results = finished
    assert json.loads((folder / "results.json").read_text()) == results
    found = [(row["task"], row["amount"], row["objective"], row["variant"]) for row in results["points"]]
    wanted = []
    for objective in ("baseline", "kl", "gradient", "hessian", "gradient+hessian"):
        wanted += [("prune", keep, objective, variant) for keep in TINY.keeps for variant in ("paper", "one level")]
        wanted += [("quantize", k, objective, v) for k in TINY.codebooks for v in ("paper", "exact", "one level")]
    assert sorted(found) == sorted(wanted)
    assert [row["temperature"] for row in results["temperature"]] == list(TEMPERATURES)
    assert [row["mu"] for row in results["mu"]] == 2 * list(REGULARISERS)
    assert results["test_samples"] == 200 and results["matrix_values"] == 8 * 784 + 80
    assert results["original_bytes"] == 4 * (8 * 784 + 80 + 18)


def test_rows_are_what_they_say(finished):
    _, results = finished
    assert results["original"]["accuracy"] > 0.5  # the network learned something
    for row in results["points"]:
        assert row["file_ratio"] == pytest.approx(row["size_bytes"] / results["original_bytes"], rel=1e-5)
        assert 0 <= row["accuracy"] <= row["top5"] <= 1 and row["cross_entropy"] > 0 and row["kl"] >= 0
        if row["task"] == "prune" and row["variant"] == "paper":
            assert row["paper_ratio"] == pytest.approx(row["amount"], abs=1e-3)
        if row["objective"] == "baseline":
            assert (row["temperature"], row["mu"]) == (1, 0)
        if row["objective"] in ("kl", "gradient"):
            assert row["mu"] == 0
    sizes = {
        (r["task"], r["amount"], r["objective"]): r["size_bytes"] for r in results["points"] if r["variant"] == "paper"
    }
    for row in results["points"]:
        if row["variant"] == "one level":
            assert row["size_bytes"] <= sizes[row["task"], row["amount"], row["objective"]]


def test_t_is_the_best_on_the_samples_that_choose(finished):
    folder, results = finished
    lines = [json.loads(line) for line in (folder / "measured.jsonl").read_text().splitlines()]
    choices = {key: value for key, value in lines if key.startswith("choice ")}
    assert len(choices) == 4 * (len(TINY.keeps) + len(TINY.codebooks))
    row = next(r for r in results["points"] if r["objective"] == "kl" and r["task"] == "prune" and r["amount"] == 0.05)
    (chosen,) = [value for key, value in choices.items() if '"prune", 0.05, "kl"' in key]
    assert [row["temperature"], row["mu"]] == chosen


def test_the_same_seed_gives_the_same_bytes(finished, tmp_path):
    folder, _ = finished
    reproduce(TINY, tmp_path, OPTIONS)
    assert (tmp_path / "results.json").read_bytes() == (folder / "results.json").read_bytes()
    for first, second in zip(draw(TINY, finished[1], tmp_path), draw(TINY, finished[1], tmp_path), strict=True):
        assert first.read_bytes() == second.read_bytes()


def test_a_run_that_was_stopped_goes_on_and_measures_nothing_twice(finished, tmp_path):
    class StoppedError(Exception):
        pass

    def stop(stage, done, total):  # noqa: ARG001
        if stage == "points" and done == 7:
            raise StoppedError

    with pytest.raises(StoppedError):
        reproduce(TINY, tmp_path, OPTIONS, stop)
    assert not (tmp_path / "results.json").exists()
    before = (tmp_path / "measured.jsonl").read_bytes()
    stages = []
    reproduce(TINY, tmp_path, OPTIONS, lambda stage, *_: stages.append(stage))
    assert "train" not in stages
    after = (tmp_path / "measured.jsonl").read_bytes()
    assert after.startswith(before)
    keys = [json.loads(line)[0] for line in after.splitlines()]
    assert len(keys) == len(set(keys))
    assert (tmp_path / "results.json").read_bytes() == (finished[0] / "results.json").read_bytes()
    reproduce(TINY, tmp_path, OPTIONS)
    assert (tmp_path / "measured.jsonl").read_bytes() == after


def test_figures_have_the_numbers_of_the_paper(finished, tmp_path):
    paths = draw(TINY, finished[1], tmp_path)
    assert [path.name for path in paths] == [f"figure-{n}-mnist.svg" for n in (2, 3, 4, 5, 11, 12)]
    for path in paths:
        assert path.read_text().rstrip().endswith("</svg>")


def test_the_table_compares_with_the_baseline(finished, capsys):
    from rich.console import Console

    Console(width=160).print(reproduction_table(finished[1]))
    text = capsys.readouterr().out
    assert "gradient+hessian" in text and " of 2" in text and "200 test samples" in text


def test_a_folder_of_another_run_is_refused(finished):
    folder, _ = finished
    with pytest.raises(WaterfillError, match="seed=0; expected 1"):
        reproduce(TINY, folder, dataclasses.replace(OPTIONS, seed=1))
    with pytest.raises(WaterfillError, match="samples=64; expected 32"):
        reproduce(TINY, folder, Options(samples=32))


def test_given_weights_are_taken_and_checked(finished, tmp_path):
    folder, results = finished
    options = dataclasses.replace(OPTIONS, weights=folder / "weights.safetensors")
    again = reproduce(TINY, tmp_path / "given", options)
    assert again["points"] == results["points"] and again["weights"] == "weights.safetensors"
    with pytest.raises(WaterfillError, match="do not fit the model"):
        reproduce(dataclasses.replace(TINY, network=EXPERIMENTS["mnist"].network), tmp_path / "other", options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (Options(width=8), "Width 8 is out of range.*none for MNIST"),
        (Options(samples=0), "samples=0, seed=0 is out of range"),
        (Options(seed=-1), "seed=-1"),
    ],
)
def test_options_out_of_range_are_refused_before_any_work(tmp_path, options, text):
    with pytest.raises(UsageError, match=text):
        reproduce(TINY, tmp_path / "run", options)
    assert not (tmp_path / "run").exists()


def test_too_many_samples_are_refused_before_any_work(tmp_path):
    with pytest.raises(WaterfillError, match=r"mnist\.npz has 512"):
        reproduce(TINY, tmp_path / "run", Options(samples=500))
    assert not (tmp_path / "run").exists()


def test_the_state_of_the_random_generator_is_left_alone(tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    reproduce(dataclasses.replace(TINY, keeps=(0.3,), codebooks=(), sweeps=()), tmp_path, OPTIONS)
    assert torch.equal(torch.rand(4), expected)
