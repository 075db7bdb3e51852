import pytest
import torch
from torch import nn

from waterfill.models.graph_end import graph_end

X = torch.randn(4, 3)


class Net(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.answer = answer

    def forward(self, x):
        return self.answer(self.layer(x))


@pytest.mark.parametrize(
    ("answer", "end"),
    [
        (torch.sigmoid, "sigmoid"),
        (lambda z: nn.Sigmoid()(z)[:, 0].reshape(4, 1).T, "sigmoid"),
        (lambda z: z.softmax(-1), "softmax"),
        (lambda z: z, "linear"),
        (lambda z: (z + 1).squeeze(), "linear"),
        (lambda z: z.clamp(0, 1), "unknown"),
        (lambda z: z.detach().sigmoid(), "unknown"),
        (lambda z: z[:, :2] @ torch.ones(5), "unknown"),
    ],
)
def test_the_last_step_before_an_output(answer, end):
    model = Net(answer).requires_grad_(False)
    with torch.no_grad():
        assert graph_end(model, X, lambda output: output) == end
    assert not any(each.requires_grad for each in model.parameters())
