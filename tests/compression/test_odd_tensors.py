"""Tensors that are no ordinary float32 matrices: compressed with data, or one clear error."""

import pytest
import torch
from torch import nn

import waterfill
from waterfill.errors import UnsupportedModelError


class Net(nn.Module):
    def __init__(self, use=lambda y, _: y, **tensors):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.use = nn.Linear(20, 16), nn.Linear(16, 6), use
        for name, tensor in tensors.items():
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(name, tensor)
            else:
                self.register_buffer(name, tensor)

    def forward(self, x):
        return self.use(self.b(torch.relu(self.a(x))), self)


WORKING = {
    "0-d parameter": lambda: Net(lambda y, m: y * m.t.exp(), t=nn.Parameter(torch.tensor(0.7))),
    "0-d buffers": lambda: Net(lambda y, m: y * m.t, t=torch.tensor(2.5), n=torch.tensor(3), f=torch.tensor(data=True)),
    "one element": lambda: Net(
        lambda y, m: y * m.t * m.u, t=nn.Parameter(torch.ones(1)), u=nn.Parameter(torch.ones(1, 1))
    ),
    "no elements": lambda: Net(t=nn.Parameter(torch.zeros(0)), u=nn.Parameter(torch.zeros(0, 5)), v=torch.zeros(3, 0)),
    "complex": lambda: Net(
        lambda y, m: (y.cfloat() @ m.t).abs(), t=nn.Parameter(torch.randn(6, 6, dtype=torch.cfloat))
    ),
    "mixed precision": lambda: Net(lambda y, m: y * m.t, t=nn.Parameter(torch.rand(6, dtype=torch.float64))),
    "8-bit floats": lambda: Net(lambda y, m: y + m.t.float(), t=torch.randn(6).to(torch.float8_e4m3fn)),
    "integers": lambda: Net(lambda y, m: y[:, m.t], t=nn.Parameter(torch.arange(6), requires_grad=False)),
}


def batches(dtype=torch.float32):
    torch.manual_seed(1)
    return [(torch.randn(16, 20).to(dtype), torch.randint(6, (16,))) for _ in range(4)]


@pytest.mark.parametrize("kind", WORKING)
def test_tensors_of_odd_shapes_and_types_are_compressed(kind, tmp_path):
    model = WORKING[kind]()
    result = waterfill.compress(model, batches(), rate=16.0, effort="fast")
    result.save(tmp_path / "net.wf")
    other = WORKING[kind]()
    waterfill.load(tmp_path / "net.wf", into=other)
    assert waterfill.evaluate(other, batches(), model).kl < 1e-3
    assert [row.name for row in result.tensors] == list(model.state_dict())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_models_of_other_precisions_are_compressed(dtype):
    assert waterfill.compress(Net().to(dtype), batches(dtype), rate=8.0, effort="fast").distortion < 0.01


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Net(t=torch.eye(6).to_sparse()), "'t' has the layout torch.sparse_coo; expected a dense tensor"),
        (lambda: Net(t=nn.Parameter(torch.eye(6, device="meta"))), "'t' .* has no data"),
        (lambda: nn.Sequential(nn.LazyLinear(6)), "'0.weight' is not initialised"),
    ],
)
def test_tensors_without_values_are_named(make, message):
    with pytest.raises(UnsupportedModelError, match=message):
        waterfill.compress(make(), batches(), rate=8.0)
