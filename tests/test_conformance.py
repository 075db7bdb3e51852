import numpy as np
import pytest

import conformance
from waterfill.importance import (
    DiagonalForm,
    DrawnForm,
    DrawnQuarticForm,
    KroneckerForm,
    QuarticForm,
    UnfactoredForm,
    completed,
    gradient,
    gradient_hessian,
    hessian,
    identity,
    kl,
    kronecker,
    random_inputs,
    regression,
    row_scale,
    weight_scale,
)
from waterfill.protocols import QuantizerTraits, traits_of
from waterfill.quantize import Feedback, KMeans, Prune, Scalar, Threshold, Trellis, Vector
from waterfill.quantize.level_table import LevelTable
from waterfill.records import Layout

MATRICES = (Layout((12, 10)), Layout((6, 4, 3, 3)), Layout((8, 5), transposed=True))
VECTORS = (Layout((40,)),)
SUBJECTS = {
    "scalar": conformance.Subject(Scalar(), MATRICES),
    "scalar that only rounds": conformance.Subject(Scalar(lmbda=0.0), MATRICES),
    "scalar with one round": conformance.Subject(Scalar(lmbda=0.3, rounds=1), MATRICES[1:2]),
    "trellis": conformance.Subject(Trellis(), MATRICES),
    "trellis of 8 states": conformance.Subject(Trellis(states=8), MATRICES),
    "trellis that only seeks the nearest path": conformance.Subject(Trellis(states=256, lmbda=0.0), MATRICES[:2]),
    "trellis with one round": conformance.Subject(Trellis(states=4, lmbda=0.2, rounds=1), MATRICES[1:2]),
    "feedback": conformance.Subject(Feedback(), MATRICES),
    "feedback of 8 states": conformance.Subject(Feedback(states=8), MATRICES),
    "feedback of 4 states without a filter": conformance.Subject(Feedback(states=4, regulariser=0.0), MATRICES[1:2]),
    "feedback of free levels": conformance.Subject(Feedback(states=1), MATRICES),
    "threshold": conformance.Subject(Threshold(), MATRICES),
    "table of levels": conformance.Subject(LevelTable(), MATRICES),
    "vector": conformance.Subject(Vector(), VECTORS),
    "coarse vector": conformance.Subject(Vector(fineness=1.0), VECTORS),
}
FIXED = {
    "k-means": conformance.Subject(KMeans(), MATRICES),
    "k-means of two": conformance.Subject(KMeans(2), MATRICES),
    "k-means from quantiles": conformance.Subject(KMeans(5, start="quantile"), MATRICES),
    "k-means from random weights": conformance.Subject(KMeans(200, start="kmeans++"), MATRICES),
    "prune": conformance.Subject(Prune(0.1), MATRICES),
    "prune nothing": conformance.Subject(Prune(1.0), MATRICES),
    "prune half": conformance.Subject(Prune(0.5), MATRICES),
}


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).uniform(0.5, 4, shape)


def squares(groups, size, seed=0):
    """Symmetric matrices without directions that cost nothing."""
    roots = np.random.default_rng(seed).standard_normal((groups, size, 2 * size))
    return roots @ roots.swapaxes(1, 2) / size


def on_the_diagonal(blocks):
    groups, size, _ = blocks.shape
    whole = np.zeros((groups, size, groups, size))
    whole[np.arange(groups), :, np.arange(groups)] = blocks
    return whole.reshape(groups * size, groups * size)


class Bare:
    """Somebody else's form, with the methods of release 0.1."""

    def diagonal(self):
        return VALUES

    def cost(self, error):
        return float((VALUES.astype(np.float64) * error**2).sum())


VALUES, MORE = numbers(8, 5).astype(np.float32), numbers(8, 5, seed=1).astype(np.float32)
FORMS = {
    "diagonal": DiagonalForm(VALUES),
    "drawn": DrawnForm(VALUES, MORE, 7),
    "unfactored": UnfactoredForm(VALUES, "why"),
    "quartic": QuarticForm(VALUES, MORE),
    "drawn quartic": DrawnQuarticForm(VALUES, MORE, MORE, 7),
    "product": KroneckerForm(numbers(8), squares(1, 5), "", 9.0),
    "product of groups": KroneckerForm(numbers(8), squares(2, 5)),
    "product with diagonal columns": KroneckerForm(numbers(8), numbers(2, 5)),
    "product with cross terms of rows": KroneckerForm(on_the_diagonal(squares(2, 4, 1)), squares(2, 5), "", 9.0),
    "somebody else's": completed(Bare()),
}
ESTIMATORS = (
    identity(),
    weight_scale(),
    row_scale(),
    random_inputs(),
    kl(),
    kl(draws=2),
    regression(),
    gradient(),
    hessian(),
    gradient_hessian(),
    kronecker(),
    kronecker(full=True),
    kronecker(draws=2),
)


class Plain:
    """A quantizer of somebody else, with no traits."""

    def quantize(self, weight, form, water_level):
        return Scalar().quantize(weight, form, water_level)


class Older(Plain):
    """The same with the attributes of release 0.1."""

    fixed = True
    tempered = False
    crossed = True


@pytest.mark.parametrize(
    ("quantizer", "traits"),
    [
        (Scalar(), QuantizerTraits(any_basis=True)),
        (Trellis(), QuantizerTraits(any_basis=True)),
        (Plain(), QuantizerTraits(fixed=False, tempered=True, uses_cross_terms=False)),
        (Older(), QuantizerTraits(fixed=True, tempered=False, uses_cross_terms=True)),
        (KMeans(), QuantizerTraits(fixed=True, tempered=False)),
        (Threshold(), QuantizerTraits(tempered=False)),
        (Feedback(), QuantizerTraits(uses_cross_terms=True, any_basis=True)),
    ],
)
def test_traits_of_a_quantizer(quantizer, traits):
    assert traits_of(quantizer) == traits


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("check", conformance.FORM_CHECKS, ids=lambda check: check.__name__)
def test_a_form_conforms(check, form):
    check(form)


@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)
@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
def test_a_quantizer_conforms(check, subject):
    check(subject)


@pytest.mark.parametrize("subject", FIXED.values(), ids=FIXED)
@pytest.mark.parametrize("check", conformance.FIXED_CHECKS, ids=lambda check: check.__name__)
def test_a_quantizer_of_a_fixed_rate_conforms(check, subject):
    assert traits_of(subject.quantizer).fixed
    check(subject)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
@pytest.mark.parametrize("check", conformance.ESTIMATOR_CHECKS, ids=lambda check: check.__name__)
def test_an_estimator_conforms(check, estimator):
    check(estimator)
