"""The limit beside a file, against sums over every weight; components are counted by the 64th of an octave."""

import gc
import json
import math
import weakref
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import slow_kronecker
import torch
from small_nets import batches, net
from torch import nn

import waterfill
from waterfill.compression import limits
from waterfill.compression.bases import Bases, in_basis
from waterfill.compression.encoder import Encoder, Job
from waterfill.compression.layerwise import CodedSegment, EntryReport, _Coder
from waterfill.compression.limits import Sample, SourceModels, entry_limit
from waterfill.compression.report_rows import ReportBuilder, _why_below
from waterfill.compression.segments import StoredTensors
from waterfill.compression.sensitivity import ModelStatistics
from waterfill.compression.tensor_slices import TensorSlice
from waterfill.files import WaterfillFile
from waterfill.importance import KroneckerForm, identity, kl, kronecker
from waterfill.importance.forms import DiagonalForm
from waterfill.quantize import KMeans, Scalar, Trellis, prepared
from waterfill.quantize.prepared import Prepared
from waterfill.records import OUT, Coded, Cosines, Entry, Exact, Layout, Quantized, Relative, Spread, Uniform, Weight
from waterfill.theory import shannon_lower_bound
from waterfill.theory import spectra as spectra_module
from waterfill.theory.scaled_source import fit_scaled_source

NO_BITS = {"symbols": np.zeros((1, 1), np.int32), "rule": Uniform(0), "spread": Spread(0, 0)}


def weight(name, *shape, seed=0, scale=1.0):
    matrix = (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)
    return Weight(name, matrix.reshape(shape[0] if len(shape) > 1 else 1, -1), Layout(shape))


def form(like, seed=1):
    return DiagonalForm(np.exp(np.random.default_rng(seed).normal(size=like.matrix.shape)).astype(np.float32))


def jobs(*weights):
    return {each.name: Job(each, Scalar(), form(each), None) for each in weights}


def reached(**distortions):
    return {name: Quantized(**NO_BITS, bits=100.0, distortion=value) for name, value in distortions.items()}


def fitted(*weights):
    """The sources of those that have one."""
    models = SourceModels()
    models.fit(weights)
    return {each.name: of_limit(each) for each in weights if models.source(each) is not None}


def of_limit(each):
    return fit_scaled_source(each.matrix.reshape(each.layout.axes), strict=True).unbiased()


def reported(jobs, quantized, exact_bits=0.0):
    """A report of tensors that were quantized, and of one that is stored without loss."""
    entries = {
        name: Entry(name, job.weight.layout.shape, "float32", Coded(job.weight.layout)) for name, job in jobs.items()
    }
    coded = CodedSegment("", 1.0, dict(entries), quantized, {}, {name: EntryReport(name) for name in jobs})
    slices = [TensorSlice(entries[name], name, job.weight, job.form) for name, job in jobs.items()]
    _Coder(StoredTensors("", list), 1.0, Encoder(Scalar()), SourceModels(), coded)._report(slices, jobs, quantized)
    coded.entries["stored"] = Entry("stored", (), "int32", Exact("integers"))
    report = ReportBuilder()
    report.add(coded, SimpleNamespace(overhead_bytes=0.0, tensor_bytes={"stored": exact_bits / 8}))
    return report, coded.entries


def price(jobs, quantized, exact_bits, measure):
    report, entries = reported(jobs, quantized, exact_bits)
    return report.limit_facts(measure, entries)


def close(bits, values):
    """About so many bits of so many values, as near as counted components are."""
    return pytest.approx(bits, abs=2e-3 * values)


def volumes(weight, source, form):
    """`I_i N_i` of every weight."""
    powers = source.source(weight.matrix.reshape(weight.layout.axes)).entropy_power.reshape(-1)
    return powers if form is None else powers * form.diagonal().reshape(-1)


def by_bisection(volumes, distortion):
    """`sum max(0, 1/2 log2(v / mu))` with `sum min(mu, v)` the distortion."""
    low, high = 0.0, float(volumes.max())
    for _ in range(200):
        level = (low + high) / 2
        low, high = (level, high) if np.minimum(volumes, level).sum() < distortion else (low, level)
    return float(np.log2(np.maximum(1, volumes / high)).sum() / 2)


def test_a_tensor_is_priced_by_the_shannon_lower_bound_of_its_source():
    plan = jobs(weight("conv", 12, 5, 3, 3))
    sources = fitted(plan["conv"].weight)
    found = price(plan, reached(conv=3.0), 0.0, "kl").tensors["conv"]
    importance = plan["conv"].form.diagonal().reshape(12, 5, 9).astype(np.float64)
    source = sources["conv"].source(plan["conv"].weight.matrix.reshape(12, 5, 9))
    assert found.rate == pytest.approx(shannon_lower_bound(source, importance, 3.0) / 540, abs=2e-3)
    assert found.source_model == sources["conv"].name
    assert found.standard_error == pytest.approx(sources["conv"].standard_error, rel=0.01)


def test_all_tensors_share_the_sum_of_their_distortions():
    plan = jobs(weight("a", 20, 30), weight("b", 40, 10, seed=5, scale=0.1))
    sources = fitted(*(job.weight for job in plan.values()))
    found = price(plan, reached(a=100.0, b=0.5), 7.0, "kl^0.5")
    everything = np.concatenate([volumes(plan[name].weight, sources[name], plan[name].form) for name in plan])
    assert found.bits == close(7.0 + by_bisection(everything, 100.5), 1000)
    apart = sum(found.tensors[name].rate * plan[name].weight.matrix.size for name in plan)
    assert found.bits - 7.0 < apart
    assert found.measure == "kl^0.5"
    errors = [sources[name].standard_error * plan[name].weight.matrix.size for name in plan]
    assert 0.9 * math.hypot(*errors) < found.standard_error <= math.hypot(*errors)  # some weights take no bits


def test_a_common_water_level_has_no_gain_from_sharing():
    plan = jobs(weight("a", 20, 30), weight("b", 40, 10, seed=5))
    sources = fitted(*(job.weight for job in plan.values()))
    level = 0.01
    at_level = {
        name: float(np.minimum(volumes(job.weight, sources[name], job.form), level).sum()) for name, job in plan.items()
    }
    found = price(plan, reached(**at_level), 0.0, "")
    apart = sum(found.tensors[name].rate * plan[name].weight.matrix.size for name in plan)
    assert found.bits == close(apart, 1000)


def test_what_has_no_limit_counts_as_it_is_stored():
    plan = jobs(weight("a", 20, 30), weight("exactly", 20, 30, seed=1), weight("few", 2, 3))
    plan["unknown"] = Job(weight("unknown", 50), Scalar(), None, None)
    sources = fitted(*(job.weight for job in plan.values()))
    assert set(sources) == {"a", "exactly", "unknown"}
    found = price(plan, reached(a=10.0, exactly=0.0, few=1.0, unknown=1.0), 16.0, "")
    assert set(found.tensors) == {"a"}
    assert found.bits == pytest.approx(16 + 3 * 100 + 600 * found.tensors["a"].rate)


def test_the_curve_of_the_limit_goes_through_the_limit():
    plan = jobs(weight("a", 20, 30), weight("b", 40, 10, seed=5, scale=0.1))
    sources = fitted(*(job.weight for job in plan.values()))
    report, entries = reported(plan, reached(a=100.0, b=0.5), 7.0)
    told = report.outcome(entries.values())
    curve = [(1000 * rate, distortion) for rate, distortion in told["limit_curve"]]
    everything = np.concatenate([volumes(plan[name].weight, sources[name], plan[name].form) for name in plan])
    bits, distortions = zip(*curve, strict=True)
    assert told["limit_distortion"] == 100.5 and told["limit"] == report.limit_bits / 1000
    assert (bits[0], bits[-1]) == (pytest.approx(7.0), pytest.approx(2 * (report.limit_bits - 7.0) + 1000 + 7.0))
    assert distortions[0] == pytest.approx(everything.sum(), rel=1e-3)
    for each, distortion in curve[1:]:
        assert each == close(7.0 + by_bisection(everything, distortion), 1000)
    assert np.interp(np.log(100.5), np.log(distortions[::-1]), bits[::-1]) == pytest.approx(report.limit_bits, rel=0.01)
    assert reported({}, {}, 7.0)[0].outcome(())["limit_curve"] == ()


def test_sources_need_values_that_differ():
    weights = [weight("seven", 7), Weight("same", np.full((4, 4), 0.3, np.float32), Layout((4, 4))), weight("eight", 8)]
    assert set(fitted(*weights)) == {"eight"}


# In a result and in its file


@pytest.fixture(scope="module")
def result():
    return waterfill.compress(net(), batches(), rate=4)


def test_every_matrix_and_the_file_have_a_limit_below_their_rate(result):
    rows = {row.name: row for row in result.tensors}
    for name in ("0.weight", "3.weight"):
        row = rows[name]
        assert 0 < row.limit < row.rate and row.gap == row.rate - row.limit
        assert row.gap_percent == pytest.approx(100 * row.gap / row.limit)
        assert 0 < row.limit_error < 0.1 and "Gaussian" in row.source_model
    assert rows["1.num_batches_tracked"].limit is None and rows["1.running_var"].gap is None
    assert 0 < result.limit < result.rate
    assert 0 < result.limit_error < 0.1
    power = result.importance_power
    measure = "kronecker" if power == 1 else f"kronecker^{power:g}"
    assert result.limit_measure in (measure, f"{measure}, measured")


def test_the_file_has_the_limits_of_the_result(result):
    found = WaterfillFile(result.data).container.limit
    assert found.bits == round(result.limit * result.floating_values)
    assert found.measure == result.limit_measure
    matrices = {row.name: row.limit for row in result.tensors if row.limit is not None and len(row.shape) > 1}
    assert found.rates == {name: round(100 * limit) / 100 for name, limit in matrices.items()}


def test_a_reader_finds_the_shares_of_the_tensors(result):
    found = WaterfillFile(result.data).container.tensor_bytes()
    assert found == pytest.approx({row.name: row.size_bytes for row in result.tensors if row.name in found})
    assert sum(found.values()) + result.overhead_bytes == pytest.approx(result.size_bytes)


def test_the_measure_is_the_importance_that_chose_the_steps():
    one = waterfill.compress(net(), batches(), rate=4, importance=kl(), effort="fast")
    assert (one.importance_power, one.limit_measure) == (0.5, "kl^0.5")
    other = waterfill.compress(net(), rate=4, importance=identity())
    assert (other.importance_power, other.limit_measure) == (1.0, "identity")


@pytest.mark.parametrize("exactly", [False, True])
def test_what_is_known_of_a_model_larger_than_memory_holds_neither_weights_nor_forms(exactly):
    statistics = ModelStatistics((), 1.0, exactly)
    large = weight("large", 30, 20)
    prices = form(large)
    statistics.add_matrix("block", large, prices)
    if not exactly:
        statistics.sources.models({"large": large}, {"large": None})
    kept = weakref.ref(large.matrix), weakref.ref(prices)
    del large, prices
    gc.collect()
    assert [each() for each in kept] == [None, None]
    assert statistics.components["block"]["large"].number == 600


@pytest.mark.parametrize("times", [1.0, 3.0])
def test_weights_that_are_zero_have_no_components_in_a_directory(times):
    statistics = ModelStatistics((), 1.0, bases=Bases(Trellis(8)))
    sparse = weight("sparse", 30, 20)
    matrix = sparse.matrix * (np.arange(20) % 4 == 0)
    statistics.add_matrix("block", replace(sparse, matrix=matrix.astype(np.float32)), form(sparse), times)
    assert statistics.components["block"]["sparse"].number == pytest.approx(150 * times)


def test_two_values_with_a_spread_have_a_limit_that_knows_them():
    model = nn.Linear(128, 128, bias=False)
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (128, 128), generator=generator) * 2.0 - 1
    model.weight.data = 0.5 * signs + 1e-4 * torch.randn(128, 128, generator=generator)
    result = waterfill.compress(model, rate=1.2)
    (row,) = result.tensors
    assert row.source_model == "2 lumps" and row.rate == 1.0
    assert row.limit == pytest.approx(1.0, abs=0.15)  # its error is as wide as the spread
    assert json.loads(result.to_json())["gap"] == result.gap


def test_the_error_of_letters_is_that_of_their_entropy_at_every_small_distortion():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(40):
        matrix = rng.choice((-1.0, 0.0, 2.0), (16, 24), p=(0.2, 0.5, 0.3)).astype(np.float32)
        weight = Weight("w", matrix, Layout(matrix.shape))
        model = SourceModels().models({"w": weight}, {"w": DiagonalForm(np.ones_like(matrix))})["w"]
        found.append(entry_limit(model, 1e-3 * matrix.size, matrix.size))
    spread = np.std([each.bits for each in found])
    assert np.mean([each.standard_error for each in found]) == pytest.approx(spread, rel=0.3)


def test_structure_that_the_source_lacks_is_named_in_the_row():
    model = nn.Linear(128, 128, bias=False)
    generator = torch.Generator().manual_seed(0)
    blocks = torch.exp(torch.randn(128, 8, generator=generator)).repeat_interleave(16, dim=1)
    model.weight.data = 0.1 * blocks * torch.randn(128, 128, generator=generator)
    (row,) = waterfill.compress(model, rate=4).tensors
    assert row.source_note.startswith("the source lacks: scales change along channels (0.") and row.reason == ""
    (bounded,) = waterfill.bound(model).tensors(4.0)
    assert bounded.source_note == row.source_note and row.source_note.endswith(" bit)")


def test_a_small_gap_below_the_limit_may_be_chance():
    assert _why_below(0.0, 0.1) == _why_below(0.3, 0.1) == _why_below(-0.002, 1e-6) == ""
    assert _why_below(-0.2, 0.1) == "below the limit within two standard errors of the fitted entropy"
    assert _why_below(-0.21, 0.1) == "below the limit of the fitted source"


def test_a_vector_of_unknown_sensitivity_has_no_limit():
    result = waterfill.compress(nn.Linear(40, 30), rate=4)
    bias = {row.name: row for row in result.tensors}["bias"]
    assert (bias.reconstruction, bias.limit, bias.source_model) == ("relative", None, "")
    rule = WaterfillFile(result.data).container.rules["bias"][0]
    assert isinstance(rule, Relative)


# Cross terms


def crossed(like, groups=1, full=False, seed=2):
    """A random form of strong cross terms for a weight."""
    rng, (out, inputs) = np.random.default_rng(seed), like.matrix.shape
    roots = rng.normal(size=(groups, inputs, inputs + 2)) + 2 * rng.normal(size=(groups, 1, inputs + 2))
    rows = np.exp(rng.normal(size=out))
    if full:
        blocks = rng.normal(size=(groups, out // groups, out // groups + 1))
        rows = torch.block_diag(*torch.from_numpy(blocks @ blocks.swapaxes(1, 2))).numpy()
    return KroneckerForm(rows, roots @ roots.swapaxes(1, 2))


def crossed_weight(name="w", shape=(6, 3, 2, 2), seed=3):
    """A weight of a source with scales along rows and channels."""
    found = weight(name, *shape, seed=seed)
    rng = np.random.default_rng(seed)
    matrix = found.matrix.reshape(found.layout.axes) * np.exp(rng.normal(size=(*found.layout.axes[:2], 1)))
    return Weight(name, matrix.reshape(found.matrix.shape).astype(np.float32), found.layout)


def dense_volumes(each, source, form):
    """Eigenvalues of the whole `N^{1/2} I N^{1/2}`."""
    roots = np.sqrt(volumes(each, source, None))
    return np.linalg.eigvalsh(roots[:, None] * slow_kronecker.dense(form) * roots)


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("full", [False, True])
def test_cross_terms_are_priced_by_the_eigenvalues_of_the_whole_matrix(groups, full):
    each = crossed_weight()
    form = crossed(each, groups, full)
    source = fitted(each)["w"]
    expected = dense_volumes(each, source, form)
    found = form.component_variances(source, each.matrix)
    np.testing.assert_allclose(np.sort(found), expected, rtol=1e-8, atol=1e-10 * expected.max())
    for distortion in (1e-3, 1.0, 0.5 * expected.sum()):
        limits = price({"w": Job(each, Scalar(), form, None)}, reached(w=distortion), 5.0, "kronecker")
        bits = by_bisection(expected, distortion)
        assert limits.tensors["w"].rate == pytest.approx(bits / 72, abs=2e-3)
        assert limits.bits == close(5.0 + bits, 72)


def test_a_product_of_diagonals_has_the_limit_of_its_diagonal():
    each = crossed_weight()
    both = crossed(each)
    diagonal = KroneckerForm(both.rows, np.einsum("gii->gi", both.columns))
    matrix = KroneckerForm(both.rows, np.stack([np.diag(diagonal.columns[0])]))
    source = fitted(each)["w"]
    expected = np.sort(volumes(each, source, DiagonalForm(diagonal.diagonal())))
    for form in (diagonal, matrix):
        found = form.component_variances(source, each.matrix)
        np.testing.assert_allclose(np.sort(found), expected, rtol=1e-6)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("work", [0.0, 300.0, 1e9])
def test_weights_that_are_known_drop_out(monkeypatch, full, work):
    monkeypatch.setattr(spectra_module, "MOST_WORK", work)
    each = crossed_weight(shape=(8, 6))
    rng = np.random.default_rng(0)
    each.matrix[:] *= rng.random(each.matrix.shape) > 0.3
    each.matrix[:4] = np.where(each.matrix[:1] != 0, rng.normal(size=(4, 6)), 0)  # four rows know the same
    each.matrix[4] = 0
    form = crossed(each, full=full)
    source = fitted(each)["w"]
    expected = dense_volumes(each, source, form)
    found = form.component_variances(source, each.matrix)
    found = found[found > 0]
    if work == 1e9 and not full:
        assert np.sort(found) == pytest.approx(expected[expected > 1e-12 * expected.max()], rel=1e-8)
    for distortion in expected.sum() * np.array([1e-6, 1e-3, 0.1, 0.5, 0.9]):
        assert by_bisection(found, distortion) <= by_bisection(expected, distortion) * (1 + 1e-9)
        assert by_bisection(found, distortion) > 0 or distortion > 0.4 * expected.sum()


def test_what_costs_nothing_is_not_counted():
    each = crossed_weight(shape=(4, 6))
    form = KroneckerForm(np.ones(4), np.ones((1, 6, 6)))  # only the sum of a row counts
    models = SourceModels()
    components = models.models({"w": each}, {"w": form})["w"].components
    powers = volumes(each, of_limit(each), None).reshape(4, 6).sum(1)
    assert components.rate_at_distortion(1e-3) == close(by_bisection(powers, 1e-3), 24)


def test_forms_with_cross_terms_have_limits_in_the_report_the_file_and_the_bound():
    result = waterfill.compress(net(), batches(), importance=kronecker(), quantizers=[KMeans(4)])
    rows = {row.name: row for row in result.tensors}
    for name in ("0.weight", "3.weight"):
        assert 0 < rows[name].limit < rows[name].rate and "Gaussian" in rows[name].source_model
    assert 0 < result.limit < result.rate and result.limit_measure == "kronecker"
    assert WaterfillFile(result.data).container.limit.bits == round(result.limit * result.floating_values)
    limit = waterfill.bound(net(), batches(), importance=kronecker())
    assert limit.unit == "nats of KL"
    assert not {"0.weight", "3.weight"} & set(limit.left_out)
    assert all(row.rate > 0 for row in limit.tensors(4.0) if row.name in ("0.weight", "3.weight"))
    assert limit.distortion(4.0) < waterfill.bound(net(), batches(), importance=kl()).distortion(4.0)


@pytest.mark.parametrize("quantizer", [Trellis(8), None], ids=["estimate", "limit"])
def test_coefficients_of_rows_do_not_stand_for_each_other(quantizer, monkeypatch):
    """In every block of cosines the first ones are the largest, and every fourth row is one of them too often."""
    layout, every = Layout((512, 64)), np.arange(512)
    root = np.linalg.cholesky(0.99 ** np.abs(every[:, None] - every))
    matrix = (root @ np.random.default_rng(0).normal(size=layout.shape)).astype(np.float32)
    some = in_basis(Weight("w", matrix, layout), Cosines(OUT, 512))
    level = float(np.square(matrix).mean()) / 16
    if quantizer is None:
        whole = SourceModels().forecast(some, None).rate(level)
        monkeypatch.setattr(limits, "SAMPLED", 1 << 13)
        assert SourceModels().forecast(some, None).rate(level) == whole
        assert Sample.of(replace(some, basis=None)).step == 4
    else:
        whole = quantizer.quantize(some, None, level).bits
        monkeypatch.setattr(prepared, "SAMPLE", 1 << 13)
        assert Prepared(quantizer, some, None).estimate_bits(level) == pytest.approx(whole, rel=0.05)
