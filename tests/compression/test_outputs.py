"""Networks whose outputs are other than logits in one tensor, from compression to measurement."""

import copy

import pytest
import torch
from torch import nn

import waterfill
from waterfill.errors import CalibrationError
from waterfill.importance import gradient, hessian, kl, kronecker

one_hot = nn.functional.one_hot


class Net(nn.Module):
    """Two layers, and what becomes of their results."""

    def __init__(self, answer, width=6):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.last = nn.Linear(20, 64), nn.Linear(64, width)
        self.last.weight.data *= 3
        self.answer = answer

    def forward(self, x):
        return self.answer(self.last(torch.relu(self.first(x))))


class Two(Net):
    """The same with a second output."""

    def __init__(self):
        super().__init__(None)
        self.side = nn.Linear(64, 12)

    def forward(self, x):
        h = torch.relu(self.first(x))
        return self.last(h), self.side(h)


def inputs():
    return torch.randn(64, 20, generator=torch.Generator().manual_seed(0))


def labels(*shape, classes=6):
    return torch.randint(classes, (64, *shape), generator=torch.Generator().manual_seed(1))


def batches(target=None):
    return [inputs()[i : i + 32] if target is None else (inputs()[i : i + 32], target[i : i + 32]) for i in (0, 32)]


def compressed(answer, target=None, width=6, **options):
    net = Net(answer, width)
    return net, waterfill.compress(net, batches(target), rate=5.0, effort="fast", **options)


def measured(net, result, tmp_path, target=None, output=None):
    """The compressed network beside the original, by the data and by its own outputs."""
    result.save(tmp_path / "net.wf")
    other = copy.deepcopy(net)
    waterfill.load(tmp_path / "net.wf", into=other)
    with torch.no_grad():
        return waterfill.evaluate(other, batches(target), reference=net, output=output), net(inputs()), other(inputs())


@pytest.mark.parametrize(
    ("answer", "target", "output"),
    [
        (lambda z: z.softmax(1), labels(), None),
        (lambda z: z.softmax(1), None, "probabilities"),
        (lambda z: z.softmax(1), one_hot(labels(), 6), None),
        (lambda z: (z.softmax(1), z.exp()), labels(), None),
    ],
)
def test_probabilities_are_compressed_as_the_logits_before_them(answer, target, output, tmp_path):
    _, wanted = compressed(lambda z: z, labels())
    net, result = compressed(answer, target, output=output)
    found, p, q = measured(net, result, tmp_path, target, output)
    p, q = (each[0] if isinstance(each, tuple) else each for each in (p, q))
    true = float((p * (p.log() - q.log())).sum(1).mean())
    assert result.distortion == pytest.approx(true, rel=1e-3)
    assert found.kl == pytest.approx(result.distortion, rel=1e-9)
    assert result.distortion == pytest.approx(wanted.distortion, rel=0.01)
    assert result.size_bytes == pytest.approx(wanted.size_bytes, rel=0.01)
    assert not net._forward_hooks


@pytest.mark.parametrize(
    ("answer", "target", "width"),
    [
        (lambda z: z, labels(classes=2), 1),
        (lambda z: z[:, 0], labels(classes=2).float(), 1),
        (lambda z: z.sigmoid(), labels(classes=2), 1),
        (lambda z: z, labels(5, classes=2), 5),
        (lambda z: z.sigmoid(), labels(5, classes=2).float(), 5),
    ],
)
def test_yes_or_no_is_measured_as_two_classes(answer, target, width, tmp_path):
    net, result = compressed(answer, target, width)
    found, _, _ = measured(net, result, tmp_path, target)
    rates = {row.name: row.rate for row in result.tensors}
    assert rates["first.weight"] > 1
    assert rates["last.weight"] > 1
    assert found.kl == pytest.approx(result.distortion, rel=1e-9)
    assert found.predictions == 64 * width
    assert 0 < result.distortion < 0.1
    assert "of yes against no" in result.notes[0]
    assert found.notes == result.notes


def test_yes_or_no_of_probabilities_is_that_of_logits():
    target = labels(classes=2)
    (_, one), (_, other) = (compressed(each, target, 1) for each in (lambda z: z, lambda z: z.sigmoid()))
    assert one.distortion == pytest.approx(other.distortion, rel=0.01)


def test_images_without_targets_have_their_classes_on_axis_1():
    answer = lambda z: z.reshape(-1, 3, 2, 2)  # noqa: E731
    _, told = compressed(answer, labels(2, 2, classes=3), 12)
    _, assumed = compressed(answer, None, 12, output="logits")
    assert assumed.distortion == pytest.approx(told.distortion, rel=0.01)
    assert told.notes == ()
    assert assumed.notes == ("Axis 1 of the output float32[32, 3, 2, 2] was read as the classes.",)


def test_what_does_not_reach_the_output_that_was_read_is_told():
    net = Two()
    result = waterfill.compress(net, batches(labels()), rate=5.0, effort="fast")
    row = next(row for row in result.tensors if row.name == "side.weight")
    assert row.rate > 1
    assert "does not reach the output that was read" in row.reason
    assert result.notes == ("The model returns a tuple of 2 tensors; the first, float32[32, 6], was read.",)


def test_probabilities_said_to_be_logits_are_refused():
    with pytest.raises(CalibrationError, match="probabilities, not logits"):
        compressed(lambda z: z.softmax(1), labels(), output="logits")


@pytest.mark.parametrize("option", [{"tolerance": 0.05}, {"distortion": 0.01}])
def test_targets_of_quality_hold_for_probabilities(option):
    net = Net(lambda z: z.softmax(1))
    target = net(inputs()).argmax(1)
    result = waterfill.compress(net, batches(one_hot(target, 6)), effort="fast", **option)
    assert result.distortion < 0.1


def test_tuning_goes_by_probabilities():
    _, result = compressed(lambda z: z.softmax(1), labels(), tune=waterfill.Tune(passes=1))
    assert result.untuned_distortion >= result.distortion


@pytest.mark.parametrize("importance", [kl(), kl(temperature=4.0), kronecker(), gradient(), hessian()])
def test_importances_of_probabilities_are_those_of_their_logits(importance):
    data = batches(labels())
    wanted = importance.estimate(Net(lambda z: z), data)
    found = importance.estimate(Net(lambda z: z.softmax(1)), data)
    for name, form in wanted.items():
        scale = max(1e-12, float(form.diagonal().max()))
        assert found[name].diagonal() / scale == pytest.approx(form.diagonal() / scale, abs=1e-4)


def test_limits_of_probabilities_are_those_of_their_logits():
    data = batches(labels())
    one, other = (waterfill.bound(Net(each), data) for each in (lambda z: z, lambda z: z.softmax(1)))
    assert one.rate(0.01) == pytest.approx(other.rate(0.01), rel=1e-3)
