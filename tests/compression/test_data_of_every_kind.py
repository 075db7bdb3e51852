"""Compression on data that shuffle, change at random, or can be read once: what is reported is what is true."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import waterfill
from waterfill.errors import CalibrationError
from waterfill.importance import kl
from waterfill.models.kept_batches import KeptBatches

FAST = {"effort": "fast"}


def net():
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 6)).eval()
    with torch.no_grad():
        for each in made.parameters():
            each.mul_(3)
    return made


def samples():
    x = torch.randn(96, 20, generator=torch.Generator().manual_seed(1))
    return x, net()(x).argmax(1)


class Stream(IterableDataset):
    def __init__(self, length):
        self.length = length

    def __iter__(self):
        return zip(*samples(), strict=True)

    def __len__(self):
        return self.length


class Augmented(Dataset):
    def __init__(self):
        self.seen = []
        self.x, self.y = samples()

    def __len__(self):
        return 96

    def __getitem__(self, index):
        self.seen.append(self.x[index] + 0.3 * torch.randn(20))
        return self.seen[-1], self.y[index]


def listed():
    x, y = samples()
    return [(x[i : i + 16], y[i : i + 16]) for i in range(0, 96, 16)]


KINDS = {
    "shuffled": lambda: DataLoader(TensorDataset(*samples()), batch_size=16, shuffle=True),
    "generator": lambda: (batch for batch in listed()),
    "stream": lambda: DataLoader(Stream(7), batch_size=16),
    "arrays": lambda: [(x.double().numpy(), y.numpy()) for x, y in listed()],
    "with an empty batch": lambda: [*listed(), (torch.empty(0, 20), torch.empty(0).long())],
}


def true_kl(result, path, x, make=net):
    result.save(path)
    copy = make()
    waterfill.load(path, into=copy)
    with torch.no_grad():
        p, q = make()(x.clone()).log_softmax(1), copy(x.clone()).log_softmax(1)
    return float((p.exp() * (p - q)).sum(1).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_reported_is_true(kind, tmp_path):
    result = waterfill.compress(net(), KINDS[kind](), distortion=0.02, **FAST)
    assert result.distortion == pytest.approx(true_kl(result, tmp_path / "net.wf", samples()[0]), rel=1e-3)
    assert result.distortion <= 0.02
    assert result.notes == ()


def test_random_augmentation_is_seen_once(tmp_path):
    data = Augmented()
    result = waterfill.compress(net(), DataLoader(data, batch_size=16, shuffle=True), rate=6.0, **FAST)
    assert len(data.seen) == 96
    true = true_kl(result, tmp_path / "net.wf", torch.stack(data.seen))
    assert result.distortion == pytest.approx(true, rel=1e-3)


def test_a_loader_gives_the_file_of_its_list():
    loader = DataLoader(TensorDataset(*samples()), batch_size=16)
    found = [waterfill.compress(net(), data, rate=6.0, **FAST).data for data in (listed(), loader, iter(listed()))]
    assert found[0] == found[1] == found[2]


def accuracy(model, data):
    """A metric that looks at the loader, and writes over what it gets."""
    right = 0
    for x, y in data:
        x.mul_(2)
        right += int((model(x / 2).argmax(1) == y).sum())
        x.zero_()
    return right / (len(data.dataset) if hasattr(data, "dataset") else 96)


@pytest.mark.parametrize("kind", ["shuffled", "list"])
def test_metrics_get_the_data_as_they_were_given(kind, tmp_path):
    data = listed() if kind == "list" else KINDS[kind]()
    result = waterfill.compress(net(), data, tolerance=0.02, metric=accuracy, **FAST)
    assert result.distortion == pytest.approx(true_kl(result, tmp_path / "net.wf", samples()[0]), rel=1e-3)


class WritesOver(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = net()

    def forward(self, x):
        return self.inner(x.mul_(0.5))


def test_networks_that_write_over_their_inputs_see_the_same_ones_in_every_pass(tmp_path):
    x, _ = samples()
    data = listed()
    result = waterfill.compress(WritesOver(), data, rate=6.0, **FAST)
    assert result.distortion == pytest.approx(true_kl(result, tmp_path / "net.wf", x, WritesOver), rel=1e-3)
    assert torch.equal(torch.cat([a for a, _ in data]), x)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.out = nn.Linear(20, 32), nn.Linear(8, 32), nn.Linear(32, 6)

    def forward(self, x, z):
        return self.out(torch.relu(self.a(x) + self.b(z)))


def test_two_inputs_are_understood_and_noted():
    torch.manual_seed(1)
    pairs = [(torch.randn(16, 20), torch.randn(16, 8)) for _ in range(4)]
    plain = waterfill.compress(Two(), [(pair, None) for pair in pairs], rate=6.0, output="values", **FAST)
    found = waterfill.compress(Two(), pairs, rate=6.0, output="values", **FAST)
    assert found.data == plain.data
    assert plain.notes == ()
    assert "read as 2 inputs without a target" in found.notes[0]
    labelled = [(*pair, torch.arange(16) % 6) for pair in pairs]
    with_target = waterfill.compress(Two(), iter(labelled), rate=6.0, **FAST)
    assert "read as 2 inputs and a target" in with_target.notes[0]
    forms = kl().estimate(Two(), labelled)
    assert set(forms) == set(kl().estimate(Two(), pairs, "logits"))
    with pytest.raises(CalibrationError, match=r"no targets.*2 inputs without a target"):
        waterfill.compress(Two(), pairs, rate=6.0, **FAST)


@pytest.mark.parametrize(("source", "kept"), [(list, 0), (iter, 1), (KeptBatches.read, 0)])
def test_batches_are_kept_once_however_often_they_are_gone_through(monkeypatch, source, kept):
    data = source([(x, y) for x, y in zip(*(each.split(16) for each in samples()), strict=True)])
    read, times = KeptBatches.read, []
    monkeypatch.setattr(KeptBatches, "read", lambda *args: times.append(1) or read(*args))
    waterfill.compress(net(), data, rate=4.0, importance=kl(), **FAST)
    assert len(times) == kept
