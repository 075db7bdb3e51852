"""Measures against scipy and plain loops."""

import copy
import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr, softmax
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from streams import Once, Samples
from waterfill.distortion import divergence, kl_divergence
from waterfill.errors import CalibrationError, UnsupportedModelError, UsageError
from waterfill.evaluation import Evaluation, evaluate, evaluate_both, reference_outputs


def nets(classes=12):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, classes), nn.Dropout()), nn.Sequential(nn.Linear(5, classes), nn.Dropout())


def labelled(classes=12, sizes=(4, 4, 3)):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 5, generator=generator), torch.randint(0, classes, (n,), generator=generator)) for n in sizes
    ]


def outputs(model, data):
    with torch.no_grad():
        return torch.cat([model.eval()(x) for x, _ in data]).double().numpy()


def test_measures_agree_with_scipy():
    model, reference = nets()
    data = labelled()
    z, r = outputs(model, data), outputs(reference, data)
    y = torch.cat([target for _, target in data]).numpy()
    found = evaluate(model, data, reference)
    divergences = rel_entr(softmax(r, -1), softmax(z, -1)).sum(-1)
    ranks = (-z).argsort(-1)
    assert found.samples == found.predictions == 11
    assert found.accuracy == pytest.approx((z.argmax(-1) == y).mean())
    assert found.top5 == pytest.approx((ranks[:, :5] == y[:, None]).any(-1).mean())
    assert found.cross_entropy == pytest.approx(-log_softmax(z, -1)[np.arange(11), y].mean(), rel=1e-6)
    assert found.kl == pytest.approx(divergences.mean(), rel=1e-6)
    assert found.kl_p99 == pytest.approx(np.quantile(divergences, 0.99), rel=1e-6)
    assert found.agreement == pytest.approx((z.argmax(-1) == r.argmax(-1)).mean())
    assert found.total_variation == pytest.approx(np.abs(softmax(r, -1) - softmax(z, -1)).sum(-1).mean() / 2, rel=1e-6)
    assert [found.perplexity, found.mse, found.squared_error, found.cosine] == [None] * 4


def test_values_agree_with_plain_loops():
    model, reference = nets(3)
    data = [(x, torch.randn(len(x), 3)) for x, _ in labelled()]
    z, r = outputs(model, data), outputs(reference, data)
    y = torch.cat([target for _, target in data]).double().numpy()
    found = evaluate(model, data, reference, output="values")
    assert found.mse == pytest.approx(((z - y) ** 2).mean(), rel=1e-9)
    assert found.squared_error == pytest.approx(((z - r) ** 2).sum(-1).mean(), rel=1e-9)
    assert found.samples == 11
    assert [found.predictions, found.accuracy, found.kl, found.cross_entropy] == [None] * 4


def test_squared_errors_are_sums_over_the_whole_output_of_a_sample():
    data = [torch.randn(4, 2, 3)]
    found = evaluate(nn.Identity(), data, [data[0] + 2], output="values")
    assert found.squared_error == pytest.approx(24, rel=1e-6)
    assert evaluate(nn.Flatten(0), data, [data[0].flatten() + 2], output="values").squared_error == pytest.approx(4)


def test_what_does_not_apply_is_none():
    model, _ = nets(3)
    found = evaluate(model, labelled(3))
    assert found.top5 is None
    assert found.kl is None
    unlabelled = evaluate(model, [x for x, _ in labelled()], output="logits")
    assert unlabelled == Evaluation(samples=11, predictions=11)


def test_a_model_does_not_differ_from_itself():
    model, _ = nets()
    found = evaluate(model, labelled(), model)
    assert (found.kl, found.agreement, found.total_variation) == (0, 1, 0)


def test_kept_outputs_replace_the_reference():
    model, reference = nets()
    data = labelled()
    kept = reference_outputs(reference, data)
    assert [out.shape for out in kept] == [(4, 12), (4, 12), (3, 12)]
    assert evaluate(model, data, kept) == evaluate(model, data, reference)
    assert evaluate(model, data, kept, output="values") == evaluate(model, data, reference, output="values")


def test_sequences_count_every_position_that_is_not_ignored():
    model, reference = nets()
    x = torch.randn(3, 6, 5)
    y = torch.randint(0, 12, (3, 6))
    y[0, 2:] = -100
    found = evaluate(model, [(x, y)], reference)
    keep = (y != -100).reshape(-1)
    flat = [(x.reshape(-1, 5)[keep], y.reshape(-1)[keep])]
    expected = evaluate(model, flat, reference)
    assert (found.samples, found.predictions) == (3, 14)
    for name in ("accuracy", "cross_entropy", "kl", "kl_p99", "agreement", "total_variation", "top5"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-6)
    kept = reference_outputs(reference, [(x, y)])
    assert evaluate(model, [(x, y)], kept) == found


def test_pixels_have_their_classes_on_axis_1():
    torch.manual_seed(0)
    x, y = torch.randn(2, 4, 3, 5), torch.randint(0, 4, (2, 3, 5))
    found = evaluate(nn.Identity(), [(x, y)])
    assert found.predictions == 30
    assert found.cross_entropy == pytest.approx(float(nn.functional.cross_entropy(x.double(), y)))
    assert found.accuracy == pytest.approx(float((x.argmax(1) == y).double().mean()))


def test_many_classes_are_measured_in_parts(monkeypatch):
    model, reference = nets()
    whole = evaluate(model, labelled(), reference)
    monkeypatch.setitem(kl_divergence._VALUES_AT_ONCE, "cpu", 30)
    for name, value in evaluate(model, labelled(), reference).to_dict().items():
        expected = whole.to_dict()[name]
        assert value == (None if expected is None else pytest.approx(expected, rel=1e-12))


def test_divergence_of_extreme_logits():
    p = torch.tensor([[0.0, -math.inf], [0.0, 0.0], [200.0, 0.0], [0.0, -1e30]])
    q = torch.tensor([[0.0, -math.inf], [0.0, -math.inf], [0.0, 0.0], [0.0, 0.0]])
    found = divergence(p, q)
    assert found[0] == 0
    assert found[1] == math.inf
    assert found[2:].tolist() == pytest.approx([math.log(2)] * 2, rel=1e-12)
    small = divergence(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0 + 1e-6]]))
    assert 0 < float(small) < 1e-12


def test_the_models_are_left_as_they_were():
    model, reference = nets()
    model.train()
    reference.train()
    reference[1].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    evaluate(model, labelled(), reference)
    reference_outputs(model, labelled())
    with pytest.raises(CalibrationError):
        evaluate(model, [torch.randn(2, 4)], reference, output="logits")
    assert [m.training for m in (model, model[1], reference, reference[1])] == [True, True, True, False]
    assert bool((model[0].weight.grad == 1).all())
    assert torch.is_grad_enabled()


def test_what_a_model_keeps_stays_usable_for_training():
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))
            self.kept = None

        def forward(self, x):
            self.kept = torch.arange(3.0) if self.kept is None else self.kept
            return x * self.scale * self.kept

    model = Keeps()
    evaluate(model, [torch.ones(2, 3)], output="values")
    model(torch.ones(2, 3)).sum().backward()


def test_progress_and_json():
    told = []
    model, _ = nets()
    found = evaluate(model, labelled(), progress=lambda *step: told.append(step))
    assert told == [("evaluate", 1, 3), ("evaluate", 2, 3), ("evaluate", 3, 3)]
    assert json.loads(found.to_json()) == found.to_dict()


def test_data_and_references_that_do_not_fit_are_refused():
    model, reference = nets()
    data = labelled()
    with pytest.raises(CalibrationError, match="Batch 1 has no reference output, there are 1; expected one for every"):
        evaluate(model, data, reference_outputs(reference, data[:1]))
    with pytest.raises(CalibrationError, match="2 batches, but reference outputs for 3; expected as many"):
        evaluate(model, data[:2], reference_outputs(reference, data))
    with pytest.raises(CalibrationError, match=r"Batch 0 gives float32\[4, 12\].*float32\[4, 3\].*the same shape"):
        evaluate(model, data, nets(3)[0])
    with pytest.raises(CalibrationError, match=r"Targets float32\[4, 2\] do not fit the values float32\[4, 12\]"):
        evaluate(model, [(torch.randn(4, 5), torch.randn(4, 2))], output="values")
    with pytest.raises(CalibrationError, match="expected 0 to 2 for 3 classes"):
        evaluate(nets(3)[0], data)
    with pytest.raises(UsageError, match="expected 'logits', 'values', 'probabilities' or None"):
        evaluate(model, data, output="classes")
    with pytest.raises(UnsupportedModelError, match="single number"):
        evaluate(nn.MSELoss(), [((torch.ones(2), torch.ones(2)), None)], output="values")


def iterable(length=None):
    return Samples((pair for x, y in labelled() for pair in zip(x, y, strict=True)), length)


class Noisy(Dataset):
    """A data set that augments at random."""

    def __len__(self):
        return 11

    def __getitem__(self, index):
        return torch.randn(5) + index, index % 3


def loaders():
    samples = TensorDataset(*map(torch.cat, zip(*labelled(), strict=True)))
    return {
        "shuffled": DataLoader(samples, batch_size=4, shuffle=True),
        "stream": Once(labelled()),
        "generator": (batch for batch in labelled()),
        "iterable": DataLoader(iterable(), batch_size=4),
        "short": DataLoader(iterable(3), batch_size=4),
        "long": DataLoader(iterable(99), batch_size=4),
        "augmented": DataLoader(Noisy(), batch_size=4, shuffle=True),
        "arrays": [(x.numpy(), y.numpy()) for x, y in labelled()],
    }


@pytest.mark.parametrize("name", loaders())
def test_no_sample_is_lost_whatever_the_data_are(name):
    model, reference = nets()
    found, told = evaluate(model, loaders()[name], reference), []
    assert found.samples == found.predictions == 11
    assert evaluate(model, loaders()[name], progress=lambda *step: told.append(step)).samples == 11
    assert [done for _, done, _ in told] == [1, 2, 3]
    if name != "augmented":
        assert found.kl == pytest.approx(evaluate(model, labelled(), reference).kl, rel=1e-6)


@pytest.mark.parametrize("name", loaders())
def test_reference_outputs_are_kept_with_their_batches(name):
    model, reference = nets()
    data = loaders()[name]
    kept = reference_outputs(reference, data)
    assert evaluate(reference, data, kept).kl == pytest.approx(0, abs=1e-12)
    first, second = evaluate(model, data, kept), evaluate(model, data, kept)
    assert first == second
    assert first.samples == 11


@pytest.mark.parametrize("name", ["shuffled", "augmented", "stream"])
def test_other_batches_than_those_of_the_reference_are_refused(name):
    model, reference = nets()
    kept = reference_outputs(reference, labelled())
    other = [(x + (index == 1), y) for index, (x, y) in enumerate(labelled())]
    data = {"stream": Once(other)}.get(name, loaders()[name])
    torch.manual_seed(1)
    with pytest.raises(CalibrationError, match=r"Batch \d is not the one that the reference outputs were made of"):
        evaluate(model, data, kept)


def test_reference_outputs_are_a_list_that_can_be_copied_and_saved(tmp_path):
    model, reference = nets()
    kept = reference_outputs(reference, labelled())
    plain = copy.deepcopy(kept)
    assert type(plain) is list
    torch.save(list(kept), tmp_path / "kept.pt")
    assert evaluate(model, labelled(), torch.load(tmp_path / "kept.pt")) == evaluate(model, labelled(), kept)
    assert evaluate(model, labelled(), list(kept)) == evaluate(model, labelled(), kept)


def test_both_are_measured_in_one_pass():
    original, compressed = nets()
    before, after = evaluate_both(original, compressed, Once(labelled()))
    assert before == evaluate(original, labelled())
    assert after == evaluate(compressed, labelled(), original)


@pytest.mark.parametrize(
    "data",
    [
        [(torch.randn(5), 1)] * 3,
        DataLoader(TensorDataset(torch.randn(6, 5), torch.arange(6)), batch_size=None),
        [torch.randn(5)],
        iterable(),
    ],
)
def test_samples_that_are_no_batches_are_named(data):
    with pytest.raises(CalibrationError, match=r"Batch 0 looks like a single sample.*DataLoader with a batch_size"):
        evaluate(nets()[0], data, output="logits")


class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x, z):
        x.mul_(2)
        return self.a(x) + self.b(z)


def test_two_inputs_are_measured_in_pairs_and_with_targets():
    model, other = Sum(), Sum()
    x, z, y = torch.randn(8, 5), torch.randn(8, 5), torch.randint(3, (8,))
    expected = evaluate(model, [((x, z), y)], other)
    found = evaluate(model, iter([(x, z, y)]), other)
    assert "3 parts are read as 2 inputs and a target" in found.notes[0]
    assert dataclasses.replace(found, notes=()) == expected
    assert evaluate(model, [(x, z)], other, output="logits").kl == expected.kl
    assert evaluate(model, [(x, z)], reference_outputs(other, [(x, z)]), output="logits").kl == expected.kl
    with pytest.raises(CalibrationError, match=r"no targets.*Give output=.*2 inputs without a target"):
        evaluate(model, [(x, z)], other)
