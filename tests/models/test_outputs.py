from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from waterfill.errors import UnsupportedModelError
from waterfill.models.outputs import first_tensor, kind_of, path_words, select, tensors_of

H, Z = torch.randn(4, 5), torch.randn(4, 3)
Heads = namedtuple("Heads", "hidden scores")


@dataclass
class Answer:
    hidden: torch.Tensor
    scores: torch.Tensor
    loss: float | None = None


@dataclass
class WithLogits:
    hidden: torch.Tensor
    logits: torch.Tensor


def paths(output):
    return [path for path, _ in tensors_of(output)]


@pytest.mark.parametrize(
    ("output", "found"),
    [
        (Z, [()]),
        ((H, Z), [(0,), (1,)]),
        ([H, [Z]], [(0,), (1, 0)]),
        ({"h": H, "n": 3, "z": {"z": Z}}, [("h",), ("z", "z")]),
        (Heads(H, Z), [("hidden",), ("scores",)]),
        (Answer(H, Z), [("hidden",), ("scores",)]),
        (SimpleNamespace(h=H, z=[Z]), [("h",), ("z", 0)]),
        ((H, SimpleNamespace(z=Z)), [(0,)]),
        ("text", []),
        (None, []),
    ],
)
def test_tensors_of_outputs_of_every_kind_have_paths(output, found):
    assert paths(output) == found
    assert all(select(output, path) is tensor for path, tensor in tensors_of(output))


@pytest.mark.parametrize(
    "output",
    [
        Z,
        (Z, H),
        (Z.sum(), Z, H),
        (Z.argmax(1), Z),
        {"loss": Z.sum(), "z": Z},
        OrderedDict(hidden=H, logits=Z),
        {"aux": H, "out": Z},
        {"hidden": H, "head": {"logits": Z}},
        Answer(Z, H),
        WithLogits(H, Z),
        SimpleNamespace(hidden=H, logits=Z),
    ],
)
def test_the_first_tensor_that_can_be_read_counts_unless_one_is_called_logits(output):
    assert first_tensor(output) is Z


def test_outputs_without_a_tensor_are_refused():
    for output in (None, "text", (), {"logits": None}, SimpleNamespace(logits=3)):
        with pytest.raises(
            UnsupportedModelError, match=f"returns a {type(output).__name__} without a tensor; expected"
        ):
            first_tensor(output)


def test_outputs_of_another_kind_than_the_first_are_refused():
    assert select((H, Z), (1,)) is Z
    for output in (Z, (H,), {"logits": Z}):
        with pytest.raises(UnsupportedModelError, match=r"without the second for one batch.*the same kind of output"):
            select(output, (1,))


def test_words_for_outputs():
    assert [path_words((0,)), path_words((1,)), path_words((9,)), path_words(("logits",)), path_words(("a", 0))] == [
        "the first", "the second", "'9'", "'logits'", "'a.0'",
    ]  # fmt: skip
    assert [kind_of((H,)), kind_of({}), kind_of(OrderedDict()), kind_of(Answer(H, Z))] == [
        "a tuple", "a dict", "a dict", "an Answer",
    ]  # fmt: skip
