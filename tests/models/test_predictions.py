import pytest
import torch

from waterfill.errors import CalibrationError
from waterfill.models.predictions import as_predictions, axes_that_fit, class_axis, prediction_rows

X, Y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])


def test_classes_are_on_the_last_axis_unless_the_target_says_axis_1():
    assert class_axis(torch.zeros(4, 3)) == 1
    assert class_axis(torch.zeros(4, 6, 3), torch.zeros(4, 6).long()) == 2
    assert class_axis(torch.zeros(4, 3, 6), torch.zeros(4, 6).long()) == 1
    assert class_axis(torch.zeros(4, 3, 5, 6), torch.zeros(4, 5, 6).long()) == 1
    assert class_axis(torch.zeros(4, 5, 5), torch.zeros(4, 5).long()) == 2
    assert class_axis(torch.zeros(4, 3, 6), torch.zeros(4, 6)) == 2
    assert class_axis(torch.zeros(4, 6, 3), Y) == 2


def test_predictions_are_rows():
    logits = torch.randn(2, 3, 4, 5)
    target = torch.randint(0, 3, (2, 4, 5))
    target[0, 1, 2] = -100
    rows, labels = as_predictions(logits, target)
    keep = target.reshape(-1) != -100
    assert torch.equal(rows, logits.permute(0, 2, 3, 1).reshape(-1, 3)[keep])
    assert torch.equal(labels, target.reshape(-1)[keep])
    assert as_predictions(X, X)[1] is None
    assert torch.equal(as_predictions(X, Y[:, None])[1], Y)


def test_targets_that_do_not_fit_are_refused():
    with pytest.raises(
        CalibrationError, match=r"int64\[3\] do not fit the logits float32\[4, 3\]; expected one target"
    ):
        as_predictions(X, Y[:3])
    for bad in (Y + 1, Y - 1):
        with pytest.raises(CalibrationError, match="expected 0 to 2 for 3 classes"):
            as_predictions(X, bad)


@pytest.mark.parametrize(
    ("shape", "target", "axes"),
    [
        ((4, 3), (4,), [1]),
        ((4, 3), (4, 1), [1]),
        ((4, 6, 3), (4, 6), [2]),
        ((4, 3, 6), (4, 6), [1]),
        ((4, 5, 5), (4, 5), [2, 1]),
        ((4, 3, 5, 6), (4, 5, 6), [1]),
        ((4, 3, 3, 3), (4, 3, 3), [1, 3]),
        ((4,), (4,), []),
        ((4, 3), (3,), []),
    ],
)
def test_axes_that_fit_targets_are_in_the_order_of_cross_entropy(shape, target, axes):
    assert axes_that_fit(torch.zeros(shape), torch.zeros(target).long()) == axes


def test_rows_keep_what_does_not_count():
    rows, labels = prediction_rows(X, torch.tensor([0, -100, 2, 0]))
    assert torch.equal(rows, X)
    assert labels.tolist() == [0, -100, 2, 0]
