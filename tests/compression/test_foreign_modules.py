"""Modules that run outside of Python, or not as they stand: scripted, traced, compiled, exported, vectorised."""

import warnings

import pytest
import torch
from torch import nn

import waterfill
from waterfill.errors import UnsupportedModelError, UsageError

INPUTS = torch.Generator().manual_seed(1)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 6))


def quietly(make, *args):
    """Script or trace, which PyTorch calls deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(*args)


def with_part(make):
    model = net()
    model[0] = make(model[0])
    return model


def scripted(module):
    return quietly(torch.jit.script, module)


def traced(module):
    return quietly(torch.jit.trace, module, torch.randn(4, 20))


def compiled(module):
    return torch.compile(module, backend="eager")


class Vectorised(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(20, 16), nn.Linear(16, 6)

    def forward(self, x):
        return torch.func.vmap(lambda one: self.b(torch.relu(self.a(one))))(x)


MODELS = {
    "scripted part": lambda: with_part(scripted),
    "traced part": lambda: with_part(traced),
    "compiled part": lambda: with_part(compiled),
    "scripted": lambda: scripted(net()),
    "traced": lambda: traced(net()),
    "compiled": lambda: compiled(net()),
    "graph": lambda: torch.fx.symbolic_trace(net()),
    "vectorised": Vectorised,
}


@pytest.mark.parametrize("kind", MODELS)
def test_foreign_modules_are_compressed_and_filled(kind, tmp_path):
    model = MODELS[kind]()
    data = [(torch.randn(16, 20, generator=INPUTS), torch.randint(6, (16,), generator=INPUTS)) for _ in range(4)]
    result = waterfill.compress(model, data, rate=8.0, effort="fast")
    assert all(row.rate > 2 for row in result.tensors if row.name.endswith("weight"))
    result.save(tmp_path / "net.wf")
    other = MODELS[kind]()
    for parameter in other.parameters():
        parameter.data.zero_()
    waterfill.load(tmp_path / "net.wf", into=other)
    measured = waterfill.evaluate(other, data, model).kl
    assert measured == pytest.approx(result.distortion, rel=1e-3, abs=1e-9)
    assert 0 < measured < 0.02


def test_scripted_norms_are_compressed():
    torch.manual_seed(0)
    part = scripted(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()))
    model = nn.Sequential(part, nn.Flatten(), nn.Linear(8 * 36, 6)).eval()
    data = [(torch.randn(16, 3, 8, 8), torch.randint(6, (16,))) for _ in range(4)]
    assert waterfill.compress(model, data, rate=8.0, effort="fast").distortion < 0.02


class Pair(nn.Module):
    """Returns zeros first, and logits that fit the targets."""

    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x):
        logits = self.net(x)
        return 0 * logits[:, :2], logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_scripted_model_is_checked_by_the_output_that_is_read(dtype):
    data = [(torch.randn(16, 20, generator=INPUTS).to(dtype), torch.arange(16) % 6) for _ in range(4)]
    result = waterfill.compress(scripted(Pair().to(dtype)), data, rate=8.0, effort="fast")
    assert "the second" in result.notes[0]
    assert 0 < result.distortion < 0.02


def test_models_that_are_none_are_refused():
    frozen = quietly(lambda: torch.jit.freeze(torch.jit.script(net().eval())))
    with pytest.raises(UnsupportedModelError, match=r"torch\.jit\.freeze"):
        waterfill.compress(frozen, rate=4.0)
    exported = torch.export.export(net(), (torch.randn(4, 20),))
    with pytest.raises(UsageError, match=r"exported\.module\(\)"):
        waterfill.compress(exported, rate=4.0)
    with pytest.raises(UsageError, match="The model is a OrderedDict"):
        waterfill.compress(net().state_dict(), rate=4.0)
