"""Every distortion keeps the same laws, whatever the outputs are."""

from typing import get_args

import pytest
import torch

from waterfill.distortion import KL_DIVERGENCE, SQUARED_ERROR, distortion_for
from waterfill.distortion.kl_divergence import divergence
from waterfill.importance.fisher import of_distortion
from waterfill.models.batches import IGNORED
from waterfill.protocols import Output

EVERY = list(dict.fromkeys(distortion_for(output) for output in get_args(Output)))


@pytest.fixture(params=EVERY, ids=[each.name for each in EVERY])
def distortion(request):
    return request.param


def outputs(seed=0, shape=(6, 5)):
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_every_kind_of_output_has_a_distortion_and_an_importance(distortion):
    estimator = of_distortion(distortion, seed=3)
    assert estimator.distortion is distortion
    assert (estimator.seed, estimator.factor, estimator.unit) == (3, distortion.factor, distortion.unit)
    assert len({each.measure for each in EVERY}) == len(EVERY)


def test_sums_and_means_are_of_the_same_distances(distortion):
    reference, result = outputs(), outputs(1)
    each = distortion.per_output(reference, result, None)
    count = distortion.count(reference, None)
    assert each.dtype == torch.float64
    assert each.shape == (count,) == (6,)
    assert bool((each > 0).all())
    total = float(each.sum())
    assert float(distortion.total(reference, result, None)) == pytest.approx(total, rel=1e-12)
    assert float(distortion.training_loss(reference, result, None)) == pytest.approx(total / count, rel=1e-5)
    (measured,) = distortion.measures(result, None, reference)
    torch.testing.assert_close(measured[distortion.measure], each)


def test_outputs_are_at_no_distance_from_themselves(distortion):
    assert float(distortion.total(outputs(), outputs(), None)) == 0
    result = outputs().requires_grad_()
    (gradient,) = torch.autograd.grad(distortion.training_loss(outputs(), result, None), result)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-6, rtol=0)


def test_the_probe_vectors_are_the_distance_of_a_small_change(distortion):
    reference = outputs().double()
    change = 1e-4 * outputs(2).double()
    generator = torch.Generator().manual_seed(0)
    sent = distortion.probe_vectors(reference, None, 1.0, None, generator)
    form = sum(float((signal * change).sum(1).square().sum()) for signal in sent.sent)
    assert sent.count == distortion.count(reference, None)
    expected = float(distortion.total(reference, reference + change, None))
    assert distortion.factor * form == pytest.approx(expected, rel=1e-3)


def test_drawn_vectors_agree_with_the_exact_ones_in_expectation(distortion):
    reference, mask, generator = outputs(), torch.ones(6, dtype=torch.bool), torch.Generator().manual_seed(0)
    exact = sum(each.square() for each in distortion.probe_vectors(reference, None, 1.0, None, generator).sent)
    drawn = [distortion.draw(reference, mask, 1.0, generator) for _ in range(4000)]
    assert {count for _, count in drawn} == {6.0}
    assert {vector.dtype for vector, _ in drawn} == {torch.float32}
    mean = torch.stack([vector.square() for vector, _ in drawn]).mean(0)
    torch.testing.assert_close(mean.double(), exact.double(), rtol=0.1, atol=0.02)


def test_predictions_that_are_not_asked_for_do_not_count():
    reference, result = outputs(shape=(2, 3, 5)), outputs(1, (2, 3, 5))
    target = torch.tensor([[0, IGNORED, 2], [IGNORED, 1, 1]])
    counted = target.flatten() != IGNORED
    each = KL_DIVERGENCE.per_output(reference, result, target)
    every = KL_DIVERGENCE.per_output(reference, result, None)
    torch.testing.assert_close(each, every[counted])
    assert KL_DIVERGENCE.count(reference, target) == 4
    torch.testing.assert_close(KL_DIVERGENCE.counted(reference, counted), reference.reshape(6, 5)[counted])
    vector, count = KL_DIVERGENCE.draw(reference, counted, 1.0, torch.Generator().manual_seed(0))
    assert count == 4
    assert not vector.reshape(6, 5)[~counted].any()
    assert bool(vector.reshape(6, 5)[counted].any(1).all())


def test_a_class_that_cannot_be_is_allowed_and_a_value_beyond_all_numbers_is_not():
    found = torch.tensor([[1.0, -torch.inf, torch.inf, torch.nan]])
    assert KL_DIVERGENCE.allowed(found).tolist() == [[True, True, False, False]]
    assert SQUARED_ERROR.allowed(found).tolist() == [[True, False, False, False]]


def test_both_divergences_agree_to_second_order_and_differ_by_a_sixth_of_the_third_cumulant():
    draw = torch.Generator().manual_seed(0)
    logits, change = torch.randn(2, 50, 10, generator=draw, dtype=torch.float64)
    change *= 2e-3
    p = logits.softmax(1)
    centred = change - (p * change).sum(1, keepdim=True)
    variance, third = ((p * centred**power).sum(1) for power in (2, 3))
    forward, backward = divergence(logits, logits + change), divergence(logits + change, logits)
    assert torch.allclose(forward, variance / 2 + third / 6, rtol=0, atol=1e-10)
    assert torch.allclose(backward, variance / 2 + third / 3, rtol=0, atol=1e-10)
    assert (forward - variance / 2).abs().max() > 1e-9
