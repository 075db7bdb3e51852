"""Importances without data: prices by rows, and by what errors do on random inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import waterfill
from waterfill.importance import identity, random_inputs, row_scale, weight_scale
from waterfill.importance.random_inputs import UNKNOWN_INPUT
from waterfill.models.torch_module import inventory


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.LSTM(6, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.cell(x)[0])


class TwoArguments(nn.Linear):
    def forward(self, x, y):
        return super().forward(x + y)


class Rejecting(nn.Linear):
    def forward(self, _):
        raise SystemError("nothing is taken")


class Frozen(nn.Linear):
    def forward(self, x):
        with torch.inference_mode():
            return super().forward(x)


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))


def notes_of(model, **options):
    notes = waterfill.compress(model, size_bytes=20_000, effort="fast", **options).notes
    return tuple(note for note in notes if "No data" in note)


def test_rows_are_priced_by_their_size_and_that_of_their_tensor():
    linear = nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0], [2.0], [0.0]]).expand(3, 4))
    values = row_scale().estimate(linear)["weight"].values
    rms = float(np.sqrt(5 / 3))
    np.testing.assert_allclose(values[:2, 0], rms**0.5 / np.array([1.0, 2.0]), rtol=1e-6)
    np.testing.assert_allclose(values[2], rms**0.5 / (1e-3 * rms), rtol=1e-6)


@pytest.mark.parametrize("estimator", [identity(), weight_scale(), row_scale()])
def test_a_tensor_of_zeros_and_one_without_elements_have_prices(estimator):
    for shape in ((3, 4), (0, 4), (3, 0)):
        model = nn.Module()
        model.weight = nn.Parameter(torch.zeros(shape))
        assert all(np.isfinite(form.values).all() for form in estimator.estimate(model).values())


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (perceptron, "[8, 20]"),
        (Recurrent, "[8, 64, 6]"),
        (lambda: nn.Sequential(nn.Embedding(11, 4), nn.Linear(4, 11)), "[8, 64]"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 4)), "[8, 784]"),
        (lambda: nn.Sequential(nn.Conv2d(3, 1, 3), nn.Flatten(), nn.Linear(26 * 26, 2)), "[8, 3, 28, 28]"),
        (lambda: nn.Sequential(nn.Conv1d(2, 4, 5), nn.AdaptiveAvgPool1d(1)), "[8, 2, 4096]"),
        (lambda: nn.Sequential(nn.Conv3d(1, 2, 3), nn.Flatten(), nn.LazyLinear(2)), "[8, 1, 16, 16, 16]"),
    ],
)
def test_inputs_are_found_and_named(model, shape):
    model = model().eval()
    if isinstance(model[-1] if isinstance(model, nn.Sequential) else None, nn.LazyLinear):
        model(torch.zeros(1, 1, 16, 16, 16))
    (note,) = notes_of(model)
    assert note.endswith(f"on random inputs {shape}.")


@pytest.mark.parametrize("model", [TwoArguments(3, 4), Rejecting(3, 4), Frozen(3, 4)])
def test_where_no_input_is_found_rows_decide_and_a_note_says_so(model):
    assert notes_of(model) == (UNKNOWN_INPUT,)
    found, expected = random_inputs().estimate(model)["weight"], row_scale().estimate(model)["weight"]
    np.testing.assert_array_equal(found.values, expected.values)


def test_a_file_is_priced_by_rows_and_a_note_says_so(tmp_path):
    from safetensors.torch import save_file

    save_file(perceptron().state_dict(), tmp_path / "m.safetensors")
    result = waterfill.compress(tmp_path / "m.safetensors", rate=6, effort="fast")
    by_rows = waterfill.compress(tmp_path / "m.safetensors", rate=6, effort="fast", importance=row_scale())
    assert result.size_bytes == by_rows.size_bytes
    assert any("no module" in note for note in result.notes)
    assert not any("no module" in note for note in by_rows.notes)


def test_outputs_that_are_made_smaller_lower_the_price_of_what_feeds_them():
    model = perceptron()
    with torch.no_grad():
        model[2].weight[:, :15] *= 0.05
    rows = random_inputs().estimate(model)["0.weight"].diagonal().mean(1)
    assert rows[:15].mean() < 0.2 * rows[15:].mean()


def test_a_tensor_that_is_not_used_is_priced_like_others_by_its_rows():
    model = perceptron()
    model.register_parameter("unused", nn.Parameter(torch.randn(6, 7)))
    values = random_inputs().estimate(model)
    ratio = values["unused"].values / row_scale().estimate(model)["unused"].values
    assert ratio.std() < 1e-6 * ratio.mean() and ratio.mean() > 0


def test_rows_that_random_inputs_do_not_reach_keep_a_price():
    model = perceptron()
    with torch.no_grad():
        model[0].bias[3] = -1e3
    rows = random_inputs().estimate(model)["0.weight"].diagonal().mean(1)
    assert rows[3] > 0.05 * rows.mean()


def test_the_model_and_the_random_numbers_of_the_caller_stay():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.LazyLinear(2)
    )
    model(torch.zeros(2, 1, 16, 16))
    model[0].weight.requires_grad_(False)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    random_inputs().estimate(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training and not model[0].weight.requires_grad and model[5].weight.grad is None
    for name, each in model.state_dict().items():
        assert torch.equal(each, before[name]), name


def test_the_same_seed_gives_the_same_file():
    model = perceptron()
    files = {seed: waterfill.compress(model, rate=4, effort="fast", seed=seed).data for seed in (0, 0, 1)}
    assert files[0] == waterfill.compress(model, rate=4, effort="fast").data
    assert files[0] != files[1]


def test_prices_of_zeros_are_finite():
    model = perceptron()
    with torch.no_grad():
        for each in model.parameters():
            each.zero_()
    for form in random_inputs().estimate(model).values():
        assert np.isfinite(form.diagonal()).all() and (form.diagonal() > 0).all()


def test_an_importance_that_is_given_says_no_note():
    assert notes_of(perceptron(), importance=weight_scale()) == ()


def test_weights_of_another_memory_layout_are_read_as_matrices():
    model = nn.Sequential(nn.ConvTranspose1d(3, 4, 5, groups=1), nn.AdaptiveAvgPool1d(1))
    weights = inventory(model).weights
    form = random_inputs().trial(model).forms(weights)["0.weight"]
    assert form.diagonal().shape == weights["0.weight"].matrix.shape
