"""The empirical Fisher information against one backward pass for each sample, in double precision."""

import pytest
import slow_importance
import torch
from small_nets import IMAGES, OUT, Function, close, image_net, values
from torch import nn

from waterfill.errors import CalibrationError, UsageError
from waterfill.importance import gradient, kl


def labels(x):
    return torch.randint(0, OUT, (len(x),), generator=torch.Generator().manual_seed(3))


def mean_squares(by_name):
    return {name: each.square().mean(0) for name, each in by_name.items()}


@pytest.mark.parametrize("case", [case for case in IMAGES if case != "no grad inside"])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_layers_agree_with_the_slow_twin(case, temperature):
    make, size = IMAGES[case]
    model, x = image_net(make(), *size)
    y = labels(x)
    expected = mean_squares(slow_importance.slopes(model, x, y, temperature))
    found = gradient(temperature=temperature).estimate(model, [(x[:3], y[:3]), (x[3:], y[3:])])
    close(values(found, model), expected)


def test_values_have_the_slope_of_the_squared_error():
    model, x = image_net(nn.Conv2d(2, 3, 3), 2, 5, 6)
    y = torch.randn(len(x), OUT, dtype=torch.float64)
    expected = mean_squares(slow_importance.slopes(model, x, y))
    close(values(gradient().estimate(model, [(x, y)], "values"), model), expected)
    close(values(gradient().estimate(model, [(x, y[:, None].numpy())], "values"), model), expected)


def test_labels_drawn_by_the_model_give_the_kl_importance():
    model, x = image_net(nn.Conv2d(2, 3, 3), 2, 5, 6)
    f = model(x).softmax(-1).detach()
    total = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in model.named_parameters()}
    for c in range(OUT):
        for sample in range(len(x)):
            one = gradient().estimate(model, [(x[sample : sample + 1], torch.tensor([c]))])
            for name, value in values(one, model).items():
                total[name] += float(f[sample, c]) * value / len(x)
    close(values(kl().estimate(model, [x], "logits"), model), total)


def test_ignored_predictions_do_not_count():
    model, x = image_net(nn.Linear(5, 4), 5)
    target = torch.tensor([0, -100, 1, -100])
    expected = mean_squares(slow_importance.slopes(model, x[::2], target[::2]))
    close(values(gradient().estimate(model, [(x, target)]), model), expected)


def sequence_net():
    torch.manual_seed(0)
    model = Function(lambda self, t: self.out(self.table(t).cumsum(1)), table=nn.Embedding(7, 4), out=nn.Linear(4, OUT))
    return model.double(), torch.randint(0, 5, (3, 5)), torch.randint(0, OUT, (3, 5))


def test_sequences_are_priced_per_prediction():
    model, t, y = sequence_net()
    y[1, 2:] = -100
    by_place = [
        slow_importance.slopes(Function(lambda self, x, p=p: self.m(x)[:, p], m=model), t, y[:, p]) for p in range(5)
    ]
    counted = int((y != -100).sum())
    drawn = [values(gradient(draws=64, seed=seed).estimate(model, [(t, y)]), model) for seed in range(10)]
    for name, _ in model.named_parameters():
        expected = torch.stack([each[f"m.{name}"].square().sum(0) for each in by_place]).sum(0) / counted
        each = torch.stack([d[name] for d in drawn]).double()
        assert bool(((each.mean(0) - expected).abs() < 5 * each.std(0) / 10**0.5 + 1e-7 * expected.max()).all())


def test_pixels_have_their_classes_on_axis_1():
    torch.manual_seed(0)
    model = nn.Conv2d(2, 3, 1).double()
    x, y = torch.randn(2, 2, 4, 5, dtype=torch.float64), torch.randint(0, 3, (2, 4, 5))
    pixels = x.permute(0, 2, 3, 1).reshape(-1, 2, 1, 1)
    expected = mean_squares(slow_importance.slopes(nn.Sequential(model, nn.Flatten()), pixels, y.reshape(-1)))
    drawn = [values(gradient(draws=64, seed=seed).estimate(model, [(x, y)]), model) for seed in range(10)]
    for name, _ in model.named_parameters():
        each = torch.stack([d[name] for d in drawn]).double()
        assert bool(((each.mean(0) - expected[f"0.{name}"]).abs() < 5 * each.std(0) / 10**0.5).all())


def test_seeds_draw_differently_and_repeatably():
    model, t, y = sequence_net()
    one, again, other = (gradient(draws=2, seed=seed).estimate(model, [(t, y)]) for seed in (1, 1, 2))
    assert (one["out.weight"].values == again["out.weight"].values).all()
    assert (one["out.weight"].values != other["out.weight"].values).any()


def test_data_without_the_right_answer_are_refused():
    model, x = image_net(nn.Linear(5, 4), 5)
    with pytest.raises(CalibrationError, match="there are none"):
        gradient().estimate(model, None)
    with pytest.raises(CalibrationError, match="no target; expected batches of \\(input, target\\)"):
        gradient().estimate(model, [x], "logits")
    with pytest.raises(CalibrationError, match="float64\\[4, 3\\], but the cross-entropy needs the right class"):
        gradient().estimate(model, [(x, torch.rand(4, 3).double())], "logits")
    with pytest.raises(CalibrationError, match="is missing, but the cross-entropy"):
        gradient().estimate(model, [(x, labels(x)), x])
    with pytest.raises(CalibrationError, match="output="):
        gradient().estimate(model, [(x, torch.rand(4, 3))])
    with pytest.raises(CalibrationError, match="squared error of outputs float64\\[4, 3\\] needs"):
        gradient().estimate(model, [(x, torch.rand(4, 2))], "values")
    with pytest.raises(CalibrationError, match="range from 0 to 3"):
        gradient().estimate(model, [(x, torch.tensor([0, 1, 2, 3]))])
    with pytest.raises(CalibrationError, match="do not fit the logits"):
        gradient().estimate(model, [(x, torch.tensor([0, 1, 2]))])
    with pytest.raises(CalibrationError, match="No prediction was seen"):
        gradient().estimate(model, [(x, torch.full((4,), -100))])


def test_options_out_of_range_are_refused():
    with pytest.raises(UsageError, match="Temperature is 0"):
        gradient(temperature=0)
    with pytest.raises(UsageError, match="Draws is 0"):
        gradient(draws=0)


def test_names_tell_the_options_that_matter():
    assert [gradient().name, gradient(temperature=4).name] == ["gradient", "gradient(temperature=4)"]
