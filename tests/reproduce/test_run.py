import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import torch

from waterfill.errors import FormatError, UsageError, WaterfillError
from waterfill.reproduce import EXPERIMENTS, Options, reproduce
from waterfill.reproduce.figures import draw
from waterfill.reproduce.summary import reproduction_table


@pytest.fixture(scope="module")
def drawn(finished, tiny, tmp_path_factory):
    """Files of the figures."""
    return draw(tiny, finished[1], tmp_path_factory.mktemp("figures"))


def test_every_point_of_every_objective_is_there(finished, tiny):
    folder, results = finished
    assert json.loads((folder / "results.json").read_text()) == results
    found = [(row["task"], row["amount"], row["objective"], row["variant"]) for row in results["points"]]
    wanted = []
    for objective in ("baseline", "kl", "gradient", "hessian", "gradient+hessian", "gradient+hessian, means 1"):
        wanted += [("prune", keep, objective, "paper") for keep in tiny.keeps]
        wanted += [("quantize", k, objective, v) for k in tiny.codebooks for v in ("paper", "exact")]
        wanted += [
            ("prune", tiny.keeps[0], objective, "one level"),
            ("quantize", tiny.codebooks[0], objective, "one level"),
        ]
    assert sorted(found) == sorted(wanted)
    assert [row["temperature"] for row in results["temperature"]] == list(tiny.temperatures)
    assert [row["mu"] for row in results["mu"]] == [0, 0.1, 0.3, 0, 0.1, 1000]
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


def test_t_is_the_best_on_the_samples_that_choose(finished, tiny):
    folder, results = finished
    lines = [json.loads(line) for line in (folder / "measured.jsonl").read_text().splitlines()]
    choices = {key: value for key, value in lines if key.startswith("choice ")}
    assert len(choices) == 5 * (len(tiny.keeps) + len(tiny.codebooks))
    row = next(r for r in results["points"] if r["objective"] == "kl" and r["task"] == "prune" and r["amount"] == 0.05)
    (chosen,) = [value for key, value in choices.items() if '"prune", 0.05, "kl"' in key]
    assert [row["temperature"], row["mu"]] == chosen


def test_the_same_seed_gives_the_same_bytes(finished, drawn, tmp_path, tiny, options):
    folder, _ = finished
    reproduce(tiny, tmp_path, options)
    assert (tmp_path / "results.json").read_bytes() == (folder / "results.json").read_bytes()
    for first, second in zip(drawn, draw(tiny, finished[1], tmp_path), strict=True):
        assert first.read_bytes() == second.read_bytes()


def test_a_run_that_was_stopped_goes_on_and_measures_nothing_twice(finished, tmp_path, tiny, options):
    class StoppedError(Exception):
        pass

    def stop(stage, done, total):  # noqa: ARG001
        if stage == "points" and done == 7:
            raise StoppedError

    with pytest.raises(StoppedError):
        reproduce(tiny, tmp_path, options, stop)
    assert not (tmp_path / "results.json").exists()
    before = (tmp_path / "measured.jsonl").read_bytes()
    stages = []
    reproduce(tiny, tmp_path, options, lambda stage, *_: stages.append(stage))
    assert "train" not in stages
    after = (tmp_path / "measured.jsonl").read_bytes()
    assert after.startswith(before)
    keys = [json.loads(line)[0] for line in after.splitlines()]
    assert len(keys) == len(set(keys))
    assert (tmp_path / "results.json").read_bytes() == (finished[0] / "results.json").read_bytes()
    reproduce(tiny, tmp_path, options)
    assert (tmp_path / "measured.jsonl").read_bytes() == after


def test_figures_have_the_numbers_of_the_paper(drawn):
    assert [path.name for path in drawn] == [f"figure-{n}-mnist.svg" for n in (2, 3, 4, 5, 11, 12)]
    for path in drawn:
        assert path.read_text().rstrip().endswith("</svg>")


def test_the_table_compares_with_the_baseline(finished, capsys):
    from rich.console import Console

    Console(width=160).print(reproduction_table(finished[1]))
    text = capsys.readouterr().out
    assert "gradient+hessian" in text and " of 2" in text and "200 test samples" in text


def test_a_folder_of_another_run_is_refused(finished, tiny, options):
    folder, _ = finished
    with pytest.raises(WaterfillError, match="seed=0; expected 1"):
        reproduce(tiny, folder, dataclasses.replace(options, seed=1))
    with pytest.raises(WaterfillError, match="samples=64; expected 32"):
        reproduce(tiny, folder, Options(samples=32))


def test_given_weights_are_taken_and_checked(finished, tmp_path, tiny, options):
    folder, results = finished
    given = dataclasses.replace(options, weights=folder / "weights.safetensors")
    again = reproduce(tiny, tmp_path / "given", given)
    assert again["points"] == results["points"] and again["weights"] == "weights.safetensors"
    with pytest.raises(WaterfillError, match="do not fit the model"):
        reproduce(dataclasses.replace(tiny, network=EXPERIMENTS["mnist"].network), tmp_path / "other", given)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (Options(width=8), "Width 8 is out of range.*none for MNIST"),
        (Options(samples=0), "samples=0, seed=0 is out of range"),
        (Options(seed=-1), "seed=-1"),
    ],
)
def test_options_out_of_range_are_refused_before_any_work(tmp_path, options, text, tiny):
    with pytest.raises(UsageError, match=text):
        reproduce(tiny, tmp_path / "run", options)
    assert not (tmp_path / "run").exists()


def test_too_many_samples_are_refused_before_any_work(tmp_path, tiny):
    with pytest.raises(WaterfillError, match=r"mnist\.npz has 512"):
        reproduce(tiny, tmp_path / "run", Options(samples=500))
    assert not (tmp_path / "run").exists()


def test_the_state_of_the_random_generator_is_left_alone(tmp_path, tiny, options):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    reproduce(dataclasses.replace(tiny, keeps=(0.3,), codebooks=(), sweeps=()), tmp_path, options)
    assert torch.equal(torch.rand(4), expected)


def test_importances_of_something_else_are_refused(finished, tiny, options, tmp_path):
    folder, _ = finished
    for name, other in (("kl-1", "weights"), ("gradient+hessian-1", "gradient-1"), ("kl-1", "kl-3")):
        place = tmp_path / f"{name}-{other}"
        shutil.copytree(folder, place)
        (place / "measured.jsonl").unlink()
        source = (
            folder / f"{other}.safetensors" if other == "weights" else folder / "importance" / f"{other}.safetensors"
        )
        shutil.copy(source, place / "importance" / f"{name}.safetensors")
        with pytest.raises(FormatError, match=rf"has no {re.escape(name)} importance of 'fc1.weight'.*Remove the file"):
            reproduce(tiny, place, options)


def test_a_run_with_other_searches_or_data_is_another_run(finished, tiny, options, data_root, tmp_path, monkeypatch):
    folder, _ = finished
    with pytest.raises(WaterfillError, match=r"holds a run with temperatures=\[1.0, 3.0\]"):
        reproduce(dataclasses.replace(tiny, temperatures=(1.0, 2.0)), folder, options)
    with np.load(data_root / "mnist.npz") as arrays:
        changed = dict(arrays)
    changed["test_labels"] = changed["test_labels"][::-1]
    np.savez(tmp_path / "mnist.npz", **changed)
    monkeypatch.setenv("WATERFILL_DATA", str(tmp_path))
    with pytest.raises(WaterfillError, match="holds a run with data_sha256"):
        reproduce(tiny, folder, options)
