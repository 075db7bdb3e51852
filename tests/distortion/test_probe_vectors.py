"""Signals add up to the matrix over the outputs that the importances ask for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from waterfill.distortion import probe_vectors
from waterfill.importance import kl, regression


def covariance(logits, temperature):
    f = (logits.double() / temperature).softmax(-1)
    return (torch.diag_embed(f) - f[:, :, None] * f[:, None, :]) / temperature**2


def outer(sent):
    stack = torch.stack(list(sent))
    return torch.einsum("kbi,kbj->bij", stack, stack)


@settings(deadline=None)
@given(
    classes=st.integers(1, 8),
    spread=st.sampled_from([0.0, 1.0, 10.0, 100.0, 2000.0]),
    temperature=st.sampled_from([0.5, 1.0, 4.0]),
    seed=st.integers(0, 99),
)
def test_exact_signals_are_a_root_of_the_covariance(classes, spread, temperature, seed):
    rows = spread * torch.randn(5, classes, generator=torch.Generator().manual_seed(seed))
    sent = list(probe_vectors.softmax_exact(rows, temperature))
    assert len(sent) == classes - 1
    if sent:
        torch.testing.assert_close(outer(sent), covariance(rows, temperature), rtol=1e-9, atol=1e-14)


def test_nothing_is_lost_when_one_class_is_nearly_certain():
    rows = torch.tensor([[80.0, 0.0, -1.0], [0.0, 80.0, -1.0], [-1.0, 0.0, 80.0]])
    rest = torch.tensor([-80.0, -81.0], dtype=torch.float64).exp().sum()
    strength = sum(sent.square().sum(-1) for sent in probe_vectors.softmax_exact(rows, 1.0))
    torch.testing.assert_close(strength, (2 * rest).expand(3), rtol=1e-6, atol=0)


@pytest.mark.parametrize("spread", [1.0, 8.0])
def test_drawn_signals_have_the_covariance_in_expectation(spread):
    rows = spread * torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    sent = list(probe_vectors.softmax_drawn(rows, 2.0, 4000, torch.Generator().manual_seed(0)))
    expected = covariance(rows, 2.0)
    assert float((outer(sent) - expected).norm() / expected.norm()) < 0.05
    torch.testing.assert_close(torch.stack(sent).sum(-1), torch.zeros(4000, 2, dtype=torch.float64), atol=1e-15, rtol=0)


def test_positions_are_drawn_independently():
    generator = torch.Generator().manual_seed(0)
    stack = torch.stack(list(probe_vectors.softmax_drawn(torch.zeros(2, 3), 1.0, 4000, generator)))
    assert float(torch.einsum("kbi,kcj->bcij", stack, stack)[0, 1].abs().max()) < 0.03


def test_values_have_the_identity():
    rows = torch.randn(2, 4)
    eye = torch.eye(4, dtype=torch.float64).expand(2, 4, 4)
    assert torch.equal(outer(probe_vectors.values_exact(rows)), eye)
    drawn = outer(probe_vectors.values_drawn(rows, 4000, torch.Generator().manual_seed(0)))
    torch.testing.assert_close(drawn, eye.clone(), atol=0.06, rtol=0)


@pytest.mark.parametrize(
    ("shape", "draws", "number", "count"),
    [((5, 4), None, 3, 5), ((5, 32), None, 31, 5), ((5, 33), None, 8, 5), ((5, 4), 3, 3, 5), ((5, 6, 4), None, 8, 30)],
)
def test_sums_are_exact_where_they_are_short(shape, draws, number, count):
    sent = kl(draws=draws).signals(torch.randn(shape), None, torch.Generator())
    assert (sent.number, sent.count) == (number, count)
    each = list(sent.sent)
    assert len(each) == number
    assert all(signal.shape == shape for signal in each)


@pytest.mark.parametrize(("shape", "number"), [((5,), 1), ((5, 4, 8), 32), ((5, 4, 9), 8)])
def test_values_are_counted_per_sample(shape, number):
    sent = regression().signals(torch.randn(shape), None, torch.Generator())
    assert (sent.number, sent.count) == (number, 5)
    assert [signal.shape for signal in sent.sent] == [torch.Size(shape)] * number
