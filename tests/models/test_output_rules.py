"""What a model returns is told from its first batch, or said, or refused."""

import pytest
import torch
from torch import nn

from waterfill.errors import CalibrationError, UnsupportedModelError, UsageError
from waterfill.models.batches import call
from waterfill.models.output_reading import active
from waterfill.models.output_rules import reading_of

one_hot = nn.functional.one_hot


class Net(nn.Module):
    """A linear layer, and what becomes of its results z."""

    def __init__(self, answer, width=6):
        super().__init__()
        self.layer = nn.Linear(20, width)
        nn.init.normal_(self.layer.weight)
        self.answer = answer

    def forward(self, x):
        return self.answer(self.layer(x))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def x():
    return torch.randn(40, 20, generator=torch.Generator().manual_seed(0))


def numbers(*shape, classes=6):
    return torch.randint(classes, (40, *shape), generator=torch.Generator().manual_seed(1))


def read(answer, target=None, output=None, width=6):
    """The reading, and what a model returns with it."""
    model = Net(answer, width)
    reading = reading_of(model, [(x(), target)], output)
    with reading.of(model), torch.no_grad():
        return reading, call(model, x()), model.layer(x())


def test_what_the_caller_says_or_integers_tell_is_read():
    assert read(lambda z: z, numbers())[0].kind == "logits"
    assert read(lambda z: z, numbers().to(torch.uint8))[0].kind == "logits"
    assert read(lambda z: z, numbers(), "values")[0].kind == "values"
    assert read(lambda z: z, None, "logits")[0].kind == "logits"
    with pytest.raises(UsageError, match="'logits', 'values', 'probabilities' or None"):
        read(lambda z: z, None, "classes")
    for target, found in ((None, "no targets"), (torch.randn(40, 6), r"targets of float32\[40, 6\]")):
        message = f"{found}.*output='logits'.*output='probabilities'.*KL.*output='values'.*squared"
        with pytest.raises(CalibrationError, match=message):
            read(lambda z: z, target)


@pytest.mark.parametrize("answer", [lambda z: z, lambda z: (z,), lambda z: {"logits": z}, lambda z: z.log_softmax(1)])
def test_ordinary_logits_are_read_as_they_are_without_a_word(answer):
    reading, _, _ = read(answer, numbers())
    assert reading.notes == ()
    assert not reading.changes
    data = [(x(), numbers())]
    assert reading.batches(data) is data


@pytest.mark.parametrize(
    "answer", [lambda z: z.softmax(1), lambda z: nn.Softmax(-1)(z.double()), lambda z: z.log_softmax(1).exp().detach()]
)
def test_probabilities_become_their_logarithms(answer):
    reading, logits, z = read(answer, numbers())
    assert reading.kind == "probabilities"
    assert reading.form == "logits"
    assert reading.notes == ("The outputs sum to 1 over the classes and were read as probabilities.",)
    assert torch.allclose(logits.float(), z.log_softmax(1), atol=1e-5)
    assert read(answer, None, "probabilities")[0].notes == ()
    with pytest.raises(CalibrationError, match=r"sum to 1: probabilities, not logits.*output='probabilities'"):
        read(answer, numbers(), "logits")
    assert read(answer, numbers(), "values")[0].kind == "values"


def test_probabilities_of_zero_become_finite():
    _, logits, _ = read(lambda z: (1e4 * z).softmax(1), None, "probabilities")
    assert bool(logits.isfinite().all())
    assert float(logits.softmax(1).min()) < 1e-30


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_probabilities_in_half_precision(dtype):
    reading, logits, z = read(lambda z: z.softmax(1).to(dtype), numbers())
    assert reading.kind == "probabilities"
    assert logits.dtype == torch.float32
    assert torch.allclose(logits.softmax(1), z.softmax(1), atol=2e-2)


@pytest.mark.parametrize("answer", [lambda z: z, lambda z: z.log_softmax(1), lambda z: 2 * z.softmax(1)])
def test_what_is_said_to_be_probabilities_is_checked(answer):
    with pytest.raises(CalibrationError, match="which are no probabilities; expected numbers from 0 to 1"):
        read(answer, numbers(), "probabilities")


# Yes or no


@pytest.mark.parametrize("answer", [lambda z: z, lambda z: z[:, 0]])
@pytest.mark.parametrize("of", [lambda y: y, lambda y: y[:, None], lambda y: y.float(), lambda y: y.bool()])
def test_one_number_for_yes_or_no_becomes_two_classes(answer, of):
    target = numbers(classes=2)
    reading, logits, z = read(answer, of(target), width=1)
    assert reading.kind == "logits"
    assert "the logit of yes against no" in reading.notes[0]
    assert torch.allclose(logits.softmax(-1)[..., 1].flatten(), z.flatten().sigmoid())
    ((_, found),) = reading.batches([(x(), of(target))])
    assert found.dtype == torch.int64
    assert torch.equal(found.flatten(), target)


@pytest.mark.parametrize(
    "answer", [torch.sigmoid, lambda z: z.sigmoid().squeeze(-1), lambda z: z[:, :1].sigmoid()[:, 0]]
)
def test_a_sigmoid_gives_probabilities_of_yes(answer):
    reading, logits, z = read(answer, numbers(classes=2), width=1)
    assert reading.kind == "probabilities"
    assert torch.allclose(logits.softmax(-1)[..., 1].flatten(), z.flatten().sigmoid(), atol=1e-6)
    with pytest.raises(CalibrationError, match="come from a sigmoid: probabilities, not logits"):
        read(answer, numbers(classes=2), "logits", width=1)
    assert read(answer, None, "probabilities", width=1)[0].kind == "probabilities"


def test_one_number_that_may_be_either_is_asked_for():
    with pytest.raises(CalibrationError, match="may be probabilities or logits of yes or no; expected output="):
        read(lambda z: z.clamp(0, 1), numbers(classes=2), width=1)
    assert read(lambda z: z.clamp(0, 1), numbers(classes=2), "logits", width=1)[0].kind == "logits"
    assert read(lambda z: z.clamp(0, 1), numbers(classes=2), "probabilities", width=1)[0].kind == "probabilities"
    with pytest.raises(CalibrationError, match="a softmax of one class, which is always 1"):
        read(lambda z: z.softmax(1), numbers(classes=2), width=1)
    with pytest.raises(CalibrationError, match=r"range from 0 to 5; expected 0 for no and 1 for yes.*output='values'"):
        read(lambda z: z, numbers(), width=1)


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
@pytest.mark.parametrize("of", [lambda y: y, lambda y: y.float(), lambda y: y.bool()])
def test_many_labels_are_a_yes_or_no_each(kind, of):
    target = numbers(6, classes=2)
    reading, logits, z = read(torch.sigmoid if kind == "probabilities" else lambda z: z, of(target))
    assert reading.kind == kind
    assert logits.shape == (40, 6, 2)
    assert torch.allclose(logits.softmax(-1)[..., 1], z.sigmoid(), atol=1e-6)
    ((_, found),) = reading.batches([(x(), of(target))])
    assert torch.equal(found, target)


def test_what_looks_like_probabilities_is_asked_for():
    with pytest.raises(CalibrationError, match="may be probabilities or logits"):
        read(lambda z: z.detach().sigmoid(), numbers())
    assert read(lambda z: z.detach().sigmoid(), numbers(), "logits")[0].kind == "logits"


def test_sigmoids_of_classes_are_a_yes_or_no_each():
    reading, logits, _ = read(torch.sigmoid, numbers())
    assert logits.shape == (40, 6, 2)
    ((_, found),) = reading.batches([(x(), numbers())])
    assert torch.equal(found, one_hot(numbers(), 6))
    with pytest.raises(CalibrationError, match="come from a sigmoid"):
        read(torch.sigmoid, numbers(), "logits")


@pytest.mark.parametrize("of", [lambda y: y, lambda y: y.float(), lambda y: y.bool()])
def test_a_single_one_among_classes_is_a_class_number(of):
    target = of(one_hot(numbers(), 6))
    reading, logits, z = read(lambda z: z, target)
    assert torch.equal(logits, z)
    assert "single 1 along axis 1" in reading.notes[0]
    ((_, found),) = reading.batches([(x(), target)])
    assert torch.equal(found, numbers())
    with pytest.raises(CalibrationError, match="no single 1 along axis 1"):
        list(reading.batches([(x(), torch.zeros_like(target))]))
    assert read(lambda z: z.softmax(1), target)[0].kind == "probabilities"


# Axes of classes


@pytest.mark.parametrize(
    ("shape", "target", "output", "axis"),
    [
        ((3, 2, 2), (2, 2), None, None),
        ((3, 2, 2), None, "logits", 1),
        ((4, 3), None, "logits", None),
        ((4, 3), (4,), None, None),
        ((3, 4), (4,), None, None),
    ],
)
def test_the_axis_of_the_classes(shape, target, output, axis):
    width = torch.Size(shape).numel()
    target = None if target is None else numbers(*target, classes=3)
    reading, logits, z = read(lambda z: z.reshape(-1, *shape), target, output, width)
    assert reading.axis == axis
    z = z.reshape(-1, *shape)
    assert torch.equal(logits, z if axis is None else z.movedim(axis, -1))
    assert bool(reading.notes) == (target is None)


@pytest.mark.parametrize("shape", [(3, 4, 4), (4, 4, 3), (3, 4), (4, 3)])
def test_the_axis_of_probabilities_is_that_of_their_sum(shape):
    axis = 1 + shape.index(3)
    answer = lambda z: z.reshape(-1, *shape).softmax(axis)  # noqa: E731
    _, logits, z = read(answer, None, "probabilities", width=torch.Size(shape).numel())
    assert torch.allclose(logits, z.reshape(-1, *shape).log_softmax(axis).movedim(axis, -1), atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 3), (3, 3, 3)])
@pytest.mark.parametrize("axis", [1, -1])
def test_where_two_axes_fit_the_targets_say_which(shape, axis):
    answer = lambda z: z.reshape(-1, *shape)  # noqa: E731
    torch.manual_seed(0)
    target = answer(Net(lambda z: z, torch.Size(shape).numel())(x())).argmax(axis)
    torch.manual_seed(0)
    reading, logits, z = read(answer, target, width=torch.Size(shape).numel())
    assert torch.equal(logits, answer(z).movedim(axis, -1))
    assert "was read as the classes" in reading.notes[0]


# Several outputs


@pytest.mark.parametrize(
    ("answer", "note"),
    [
        (lambda h, z: (z, h), "a tuple of 2 tensors; the first, float32[40, 6], was read."),
        (lambda h, z: (h, z), "a tuple of 2 tensors; the second, float32[40, 6], was read, as it fits the targets."),
        (lambda h, z: [h[:, :4], z], "a list of 2 tensors; the second, float32[40, 6], was read, as it fits"),
        (lambda h, z: (z, (h, h)), "a tuple of 3 tensors; the first, float32[40, 6], was read."),
        (lambda h, z: {"a": h, "b": [z]}, "a dict of 2 tensors; 'b.0', float32[40, 6], was read, as it fits"),
        (lambda h, z: {"a": h, "logits": z}, "a dict of 2 tensors; 'logits', float32[40, 6], was read."),
    ],
)
def test_which_of_several_tensors_was_read_is_said(answer, note):
    layer = nn.Linear(20, 12)
    reading, found, z = read(lambda z: answer(torch.cat([layer(x()), z], 1), z), numbers())
    assert torch.equal(found, z)
    assert note in reading.notes[0]


def test_the_tensor_that_tells_the_targets_is_read():
    torch.manual_seed(0)
    target = Net(lambda z: z)(x()).argmax(1)
    torch.manual_seed(0)
    reading, found, z = read(lambda z: (z.flip(1), z), target)
    assert torch.equal(found, z)
    assert "the second" in reading.notes[0]


def test_values_fit_targets_of_their_shape():
    reading, found, z = read(lambda z: (z.sum(1), z), torch.randn(40, 6), "values")
    assert torch.equal(found, z)
    assert "the second" in reading.notes[0]


def test_a_tensor_of_all_samples_comes_before_others():
    reading, found, z = read(lambda z: (z.new_zeros(2, 40, 6), z), None, "logits")
    assert torch.equal(found, z)
    assert "the second" in reading.notes[0]


def test_models_that_run_no_hooks_are_named():
    class Direct(Net):
        def __call__(self, x):
            return self.forward(x)

    assert reading_of(Direct(lambda z: z), [(x(), numbers())]).kind == "logits"
    with pytest.raises(UnsupportedModelError, match="Direct has a __call__ of its own that runs no forward hooks"):
        reading_of(Direct(lambda z: z.softmax(1)), [(x(), numbers())])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda z: z.sum(), "a single number for a batch"),
        (lambda z: z.argmax(1), r"int64\[40\], which are no logits.*before argmax"),
        (lambda z: z > 0, r"bool\[40, 6\], which are no logits"),
        (lambda z: z.to_sparse(), "a sparse or nested tensor.*to_dense"),
        (lambda z: torch.complex(z, z), "complex numbers, which are no scores"),
        (lambda z: {}, "a dict without a tensor"),  # noqa: ARG005
        (lambda z: None, "a NoneType without a tensor"),  # noqa: ARG005
    ],
)
def test_what_cannot_be_read_is_refused(answer, message):
    with pytest.raises(UnsupportedModelError, match=message):
        read(answer, numbers())


def test_complex_values_are_pairs_of_values():
    _, values, z = read(lambda z: torch.complex(z, 2 * z), None, "values")
    assert torch.equal(values, torch.stack([z, 2 * z], -1))


# What reading leaves


def test_a_model_is_read_only_within_the_context():
    model = Net(lambda z: z.softmax(1))
    reading = reading_of(model, [(x(), numbers())])
    with reading.of(model, model, None, []):
        assert active(model) is reading
        assert not reading_of(model, [(x(), numbers())]).changes
        assert float(call(model, x()).detach().max()) <= 0
    assert active(model) is None
    assert not model._forward_hooks
    assert float(call(model, x()).detach().min()) >= 0


def test_modes_and_gradients_are_left_as_they_were():
    model = Net(torch.sigmoid, 1).train().requires_grad_(False)
    reading_of(model, [(x(), numbers(classes=2))])
    assert model.training
    assert not any(each.requires_grad for each in model.parameters())
