import numpy as np
import pytest
import torch
from torch import nn

from waterfill.zoo import Batches
from waterfill.zoo.batches import Labelled
from waterfill.zoo.training import Recipe, _augmented, train


def batches(count=256, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count)
    images = rng.normal(size=(count, 1, 6, 6)).astype(np.float32)
    images[np.arange(count), 0, labels, labels] += 4
    return Batches(Labelled(images, labels, "made"), torch.from_numpy, 100)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))


def accuracy(model, data):
    return float(np.mean([float((model(x).argmax(1) == y).float().mean()) for x, y in data]))


def test_a_network_learns_and_is_left_in_evaluation_mode():
    model = net()
    before = accuracy(model.eval(), batches())
    calls = []
    train(model, batches(), Recipe(epochs=5, batch_size=32), progress=lambda *call: calls.append(call))
    assert not model.training and before < 0.6 < 0.95 < accuracy(model, batches(seed=1))
    assert calls == [("train", done, 5) for done in range(1, 6)]


def test_the_same_seed_trains_the_same_network():
    models = [net() for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        train(model, batches(), Recipe(epochs=1, flip=True, shift=2), seed)
    first, second, third = ([p.detach() for p in model.parameters()] for model in models)
    assert all(map(torch.equal, first, second)) and not all(map(torch.equal, first, third))


def test_learning_rate_and_momentum_go_through_one_cycle(monkeypatch):
    seen = []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            (group,) = self.param_groups
            assert group["nesterov"]
            seen.append((group["lr"], group["momentum"], group["weight_decay"]))
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "SGD", Watched)
    train(net(), batches(), Recipe(epochs=4, batch_size=32, learning_rate=0.3, weight_decay=1e-3))
    rates, momenta, decays = (np.array(each) for each in zip(*seen, strict=True))
    assert len(rates) == 4 * 8 and set(decays) == {1e-3}
    top = int(rates.argmax())
    assert top == 7 == momenta.argmin()  # a quarter of the steps
    assert rates[top] == pytest.approx(0.3) and momenta[top] == pytest.approx(0.85)
    assert momenta[0] == pytest.approx(0.95) == momenta[-1] and max(rates[0], rates[-1]) < 0.02
    assert (np.diff(rates[: top + 1]) > 0).all() and (np.diff(rates[top:]) < 0).all()


@pytest.mark.parametrize("shift", [1, 3])
def test_images_are_moved_by_up_to_the_shift_and_the_border_is_zero(shift):
    images = torch.zeros(400, 2, 9, 9)
    images[:, 0, 4, 4], images[:, 1, 4, 4] = 1, 2
    moved = _augmented(images, Recipe(shift=shift), torch.Generator().manual_seed(0))
    assert moved.shape == images.shape and torch.equal(2 * moved[:, 0], moved[:, 1])
    assert torch.equal(moved[:, 0].sum((1, 2)), torch.ones(400))
    rows, columns = np.unique(moved[:, 0].nonzero()[:, 1:].numpy(), axis=0).T
    assert set(rows) == set(columns) == set(range(4 - shift, 5 + shift))
    assert len(rows) == (2 * shift + 1) ** 2


def test_half_of_the_images_are_mirrored():
    images = torch.arange(8.0).expand(1000, 1, 2, 8)
    mirrored = _augmented(images, Recipe(flip=True), torch.Generator().manual_seed(0))
    count = int((mirrored[:, 0, 0, 0] == 7).sum())
    assert 440 < count < 560
    assert torch.equal(mirrored[mirrored[:, 0, 0, 0] == 0], images[: 1000 - count])


def test_without_augmentation_images_stay():
    images = torch.randn(5, 1, 4, 4)
    assert _augmented(images, Recipe(), torch.Generator()) is images
