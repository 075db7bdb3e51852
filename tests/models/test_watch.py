"""What a watch sees of every product with a matrix, and that a matrix is changed before its output goes anywhere."""

import pytest
import torch
import torch.nn.functional as F
from small_nets import Function, param
from torch import Tensor, nn

from waterfill.models.functions import PRODUCTS
from waterfill.models.uses import Convolution
from waterfill.models.watch import ProductWatch

FORMS = {
    F.linear: (F.linear, (4, 3), (5, 3)),
    torch.matmul: (torch.matmul, (3, 4), (2, 5, 3)),
    torch.mm: (torch.mm, (3, 4), (5, 3)),
    Tensor.matmul: (lambda x, w: x.matmul(w), (3, 4), (3,)),
    Tensor.mm: (lambda x, w: x.mm(w), (3, 4), (5, 3)),
    Tensor.__matmul__: (lambda x, w: x @ w, (3, 4), (2, 5, 3)),
    torch.addmm: (lambda x, w: torch.addmm(x.new_zeros(4), x, w), (3, 4), (5, 3)),
    Tensor.addmm: (lambda x, w: x.new_zeros(4).addmm(x, w), (3, 4), (5, 3)),
    F.conv1d: (lambda x, w: F.conv1d(x, w, stride=2, padding=1), (4, 3, 3), (2, 3, 8)),
    F.conv2d: (lambda x, w: F.conv2d(x, w, None, 1, "same", groups=2), (4, 2, 3, 3), (2, 4, 5, 5)),
    F.conv3d: (F.conv3d, (4, 3, 2, 2, 2), (2, 3, 3, 3, 4)),
    F.conv_transpose1d: (lambda x, w: F.conv_transpose1d(x, w, stride=2), (3, 4, 3), (2, 3, 5)),
    F.conv_transpose2d: (
        lambda x, w: F.conv_transpose2d(x, w, groups=2, padding=1),
        (4, 2, 3, 3),
        (2, 4, 5, 4),
    ),
    F.conv_transpose3d: (F.conv_transpose3d, (3, 4, 2, 2, 2), (2, 3, 2, 3, 2)),
}


def product(function):
    """A net that is one product, and inputs for it."""
    torch.manual_seed(0)
    call, shape, size = FORMS[function]
    return Function(lambda self, x: call(x, self.w), w=param(*shape)), torch.randn(size)


class Seen:
    """An action that notes what it is given, and multiplies the matrix."""

    def __init__(self, model, factor=1):
        self.tensors, self.factor, self.uses = dict(model.named_parameters()), factor, []

    def __call__(self, name, view, x):
        self.uses.append((name, view, x))
        self.tensors[name].mul_(self.factor)


def watch(model, *inputs, factor=1):
    seen = Seen(model, factor)
    with torch.no_grad(), ProductWatch(seen.tensors, seen) as watching:
        output = model(*inputs)
    return output, seen.uses, watching.missed


def test_there_is_a_net_for_every_form():
    assert FORMS.keys() == PRODUCTS.keys()


@pytest.mark.parametrize("function", PRODUCTS, ids=lambda function: function.__qualname__)
def test_the_matrix_times_what_is_seen_is_the_output(function):
    model, x = product(function)
    output, ((name, view, seen),), missed = watch(model, x)
    assert torch.equal(output, model(x))
    assert (name, missed) == ("w", set())
    groups, out, width = view.sizes
    matrix = torch.from_numpy(view.layout.to_matrix(model.w.detach().numpy())).reshape(groups, out, width)
    rows = output if isinstance(view, Convolution) else output.reshape(len(seen), -1)
    torch.testing.assert_close(torch.einsum("goi,rgip->rgop", matrix, view.inputs(seen)), view.gradients(rows))


@pytest.mark.parametrize("function", PRODUCTS, ids=lambda function: function.__qualname__)
def test_a_changed_matrix_is_used_in_the_same_pass(function):
    model, x = product(function)
    before = model(x).detach()
    output, _, missed = watch(model, x, factor=2)
    assert torch.equal(output, 2 * before) and not missed
    assert torch.equal(output, model(x))


def test_what_follows_is_computed_with_the_changed_matrix():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    x = torch.randn(5, 3)
    output, uses, _ = watch(model, x, factor=2)
    assert [name for name, _, _ in uses] == ["0.weight", "2.weight", "4.weight"]
    assert torch.equal(output, model(x))
    assert torch.equal(uses[2][2], model[:4](x))


def test_a_matrix_that_is_not_watched_is_left_alone():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.randn(5, 3)
    seen = Seen(model, 2)
    with torch.no_grad(), ProductWatch({"one": model[1].weight}, lambda *use: seen("1.weight", *use[1:])):
        model(x)
    assert [name for name, _, _ in seen.uses] == ["1.weight"]


ELSEWHERE = {
    "turned": lambda self, x: F.linear(x, self.w.t()),
    "part": lambda self, x: x @ self.w + self.w[0],
    "factor": lambda self, x: x * self.w,
    "in a list": lambda self, x: x @ torch.cat([self.w, self.w], 1),
    "by name": lambda self, x: torch.mul(x, other=self.w),
    "left": lambda self, x: self.w @ x,
    "input of a product": lambda self, x: F.linear(self.w, x),
    "input of a convolution": lambda self, x: F.conv2d(self.w[None, None], x[None, None]),
    "scaled sum": lambda self, x: torch.addmm(x, x, self.w, alpha=2),
    "data": lambda self, x: x @ self.w.data,
    "no batch": lambda self, x: F.conv1d(x, self.w[:, :, None]),
    "embedding": lambda self, x: F.embedding(x.long().clamp(0, 1), self.w),
}


@pytest.mark.parametrize("case", ELSEWHERE)
def test_what_goes_into_other_functions_is_missed(case):
    torch.manual_seed(0)
    _, _, missed = watch(Function(ELSEWHERE[case], w=param(3, 3)), torch.randn(3, 3))
    assert missed == {"w"}


def test_an_unbatched_convolution_is_missed():
    output, uses, missed = watch(nn.Conv1d(3, 4, 2, bias=False), torch.randn(3, 5))
    assert (output.shape, uses, missed) == ((4, 4), [], {"weight"})


def test_looking_at_its_shape_is_no_use():
    model = Function(lambda self, x: (x @ self.w) / len(self.w) * self.w.shape[0] ** self.w.dim(), w=param(3, 3))
    _, uses, missed = watch(model, torch.randn(5, 3))
    assert len(uses) == 1 and not missed


def test_a_tied_embedding_is_seen_and_missed():
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7, bias=False))
    model[1].weight = model[0].weight
    _, uses, missed = watch(model, torch.tensor([[1, 2, 6]]))
    assert [name for name, _, _ in uses] == ["0.weight"] and missed == {"0.weight"}


def test_matrices_of_recurrent_layers_are_missed():
    model = nn.LSTM(3, 4, 2)
    _, uses, missed = watch(model, torch.randn(5, 1, 3))
    assert not uses and missed == {name for name, _ in model.named_parameters()}
