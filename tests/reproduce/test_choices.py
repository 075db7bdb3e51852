"""What T and mu are chosen by, with losses and importances that are made up."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from waterfill.errors import UsageError
from waterfill.importance.forms import DiagonalForm, QuarticForm
from waterfill.reproduce.experiments import Objective
from waterfill.reproduce.importances import Importances, Setting
from waterfill.reproduce.run import Lab, Step, _split
from waterfill.zoo import Batches
from waterfill.zoo.batches import Labelled

LOSSES = {
    "kl": {1.0: 0.3, 2.0: 0.1, 3.0: 0.2, 4.0: 0.1},
    "cross_entropy": {1.0: 0.3, 2.0: 0.2, 3.0: 0.1, 4.0: 0.5},
}


@pytest.mark.parametrize(("objective", "best"), [("kl", 2.0), ("gradient", 3.0), ("hessian", 3.0)])
def test_the_first_setting_of_least_loss_is_chosen(tiny, objective, best):
    filled, asked = [], []

    def quality(name, samples):
        asked.append((name, samples))
        return {loss: of[filled[-1].temperature] for loss, of in LOSSES.items()}

    lab = SimpleNamespace(
        experiment=tiny,
        importances=lambda setting: setting,
        subject=SimpleNamespace(quantize=lambda quantizer, forms: forms, fill=filled.append),  # noqa: ARG005
        validation="behind",
        _quality=quality,
    )
    settings = [Setting(objective, temperature) for temperature in LOSSES["kl"]]
    assert Lab._best(lab, Step("prune", 0.1, objective), settings) == Setting(objective, best)
    assert filled == settings
    assert set(asked) == {("validation", "behind")}


def test_settings_are_chosen_on_samples_behind_those_of_the_importances():
    every = Labelled(np.arange(10.0), np.arange(10), "made")
    parts = _split(Batches(every, torch.from_numpy, 4), 7)
    assert [part.samples.labels.tolist() for part in parts] == [list(range(7)), [7, 8, 9]]
    assert [part.samples.inputs.tolist() for part in parts] == [list(range(7)), [7, 8, 9]]


SUBJECT = SimpleNamespace(
    model="network", inventory=SimpleNamespace(weights={"w": SimpleNamespace(matrix=np.zeros((1, 2), np.float32))})
)


@pytest.fixture
def made(tiny, tmp_path):
    """Importances that say how they were asked for, and a list of these questions."""
    asked = []

    def estimator(kind):
        def at(temperature, seed):
            def estimate(model, batches, output, *, fold_norms):
                asked.append((kind, temperature, seed, model, batches, output, fold_norms))
                two = np.float32([[temperature, 3 * temperature]])
                return {"w": DiagonalForm(two) if kind == "two" else QuarticForm(two, 10 * two)}

            return SimpleNamespace(estimate=estimate)

        return at

    objectives = (
        Objective("plain", None),
        Objective("squares", estimator("two")),
        Objective("both", estimator("four")),
        Objective("means 1", estimator("four"), normalises="both"),
    )
    experiment = dataclasses.replace(tiny, objectives=objectives)
    return Importances(experiment, SUBJECT, ["data"], 5, tmp_path / "importance"), asked


def test_importances_are_those_of_the_setting(made):
    importances, asked = made
    assert importances(Setting("plain", 2.0)) == {}
    found = importances(Setting("squares", 2.0))["w"]
    assert type(found) is DiagonalForm and found.values.tolist() == [[2, 6]]
    found = importances(Setting("squares", 3.0, mu=0.5))["w"]
    assert found.values.tolist() == [[6, 12]]  # 3 and 9, and half of the mean 6
    found = importances(Setting("both", 2.0, mu=0.5))["w"]
    assert type(found) is QuarticForm and found.values.tolist() == [[2, 6]] and found.fourth.tolist() == [[40, 80]]
    assert asked == [
        (kind, temperature, 5, "network", ["data"], "logits", False)
        for kind, temperature in (("two", 2.0), ("two", 3.0), ("four", 2.0))
    ]
    with pytest.raises(UsageError, match="mu is -1"):
        importances(Setting("squares", 2.0, mu=-1))


def test_means_are_divided_out_of_what_another_objective_estimates(made):
    importances, asked = made
    importances(Setting("both", 2.0))
    found = importances(Setting("means 1", 2.0, mu=0.5))["w"]
    assert type(found) is QuarticForm and found.values.tolist() == [[0.5, 1.5]] and found.fourth.tolist() == [[1, 2]]
    assert len(asked) == 1


def test_importances_are_estimated_once(made, tmp_path):
    importances, asked = made
    calls = []
    importances.estimate_all((1.0, 2.0), lambda *call: calls.append(call))
    assert calls == [("importance", done, 4) for done in (1, 2, 3, 4)] and len(asked) == 4
    names = {"squares-1", "squares-2", "both-1", "both-2"}
    assert {path.name for path in (tmp_path / "importance").iterdir()} == {f"{name}.safetensors" for name in names}
    again = Importances(importances._experiment, SUBJECT, ["data"], 5, tmp_path / "importance")
    again.estimate_all((1.0, 2.0), None)
    assert len(asked) == 4
