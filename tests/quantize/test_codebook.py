"""Codebooks in the walk: the optimum of k-means, in a file, entropy-coded."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import conformance
from conformance import packed, random_form, random_weight, w_hat, weight
from waterfill.compression.encoder import Encoder, Job
from waterfill.errors import UsageError
from waterfill.files import WaterfillFile
from waterfill.importance.forms import DiagonalForm
from waterfill.quantize import KMeans
from waterfill.quantize.kmeans import cost, exact_kmeans, relu_rescale
from waterfill.records import Codebook, Layout, Uniform
from waterfill.theory.exhaustive import exhaustive_quantization

LAYOUT = Layout((24, 10))


@dataclass(frozen=True, eq=False)
class QuarticForm(DiagonalForm):
    fourth: np.ndarray

    def quartic(self):
        return self.fourth


@pytest.mark.parametrize("start", ["exact", "quantile", "linear", "kmeans++"])
@pytest.mark.parametrize("form", [None, random_form(LAYOUT)], ids=["no form", "form"])
def test_every_weight_is_a_value_of_the_codebook_that_is_in_the_file(start, form):
    some = random_weight(LAYOUT)
    quantized = KMeans(7, start=start).quantize(some, form, 1.0)
    conformance.check_record(quantized, some, form)
    conformance.check_file(quantized, LAYOUT)
    values, first = quantized.rule.values, quantized.rule.first
    assert values.dtype == np.float32
    assert 1 <= len(values) <= 7
    assert (np.diff(values) > 0).all()
    assert abs(values[-first]) == np.abs(values).min()
    assert set(np.unique(quantized.symbols)) == set(range(first, first + len(values)))


@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
@settings(max_examples=20, deadline=None)
def test_the_clusters_are_those_of_k_means(seed, k):
    some, form = random_weight(LAYOUT, seed), random_form(LAYOUT, seed + 1)
    quantized = KMeans(k).quantize(some, form, 1.0)
    least = cost(some.matrix, form.values, *exact_kmeans(some.matrix, form.values, k))
    assert quantized.distortion == pytest.approx(least, rel=1e-5, abs=1e-12)


def test_a_quartic_form_is_priced_with_its_fourth_powers():
    some, form = random_weight(LAYOUT), random_form(LAYOUT)
    quartic = QuarticForm(form.values, 10 * random_form(LAYOUT, 5).values)
    plain, fourth = (w_hat(KMeans(4).quantize(some, each, 1.0), LAYOUT) for each in (form, quartic))
    _, labels = exact_kmeans(some.matrix, form.values, 4, quartic=quartic.fourth)
    assert (np.unique(fourth, return_inverse=True)[1].reshape(labels.shape) == labels).all()

    def price(values):
        squares = np.square(some.matrix - values, dtype=np.float64)
        return (form.values * squares + quartic.fourth * squares**2).sum()

    assert price(fourth) < price(plain)


@pytest.mark.parametrize("seed", range(4))
def test_two_centroids_of_one_unit_are_those_of_all_partitions_up_to_the_length_of_relu(seed):
    rng = np.random.default_rng(seed)
    layout = Layout((1, 8))
    some, variances = random_weight(layout, seed), rng.gamma(1.0, size=(1, 8)).astype(np.float32)
    quantized = KMeans(2).quantize(some, DiagonalForm(variances), 1.0)
    found = w_hat(quantized, layout).reshape(-1)
    best = exhaustive_quantization(some.matrix[0], variances[0].astype(np.float64), 2)
    assert found == pytest.approx(best.by_objective.w_hat, rel=1e-5)
    labels = (quantized.symbols - quantized.rule.first)[0]
    longer = relu_rescale(some.matrix[0], variances[0], quantized.rule.values, labels)
    assert longer[labels] == pytest.approx(best.by_error.w_hat, rel=1e-5)


def test_the_water_level_is_ignored_and_the_same_input_gives_the_same_file():
    some, form = random_weight(LAYOUT), random_form(LAYOUT)
    for start in ("exact", "kmeans++"):
        files = {packed(KMeans(5, start).quantize(some, form, level), LAYOUT).data for level in (1e-9, 1.0, 1.0, 1e9)}
        assert len(files) == 1


def test_files_and_errors_follow_the_number_of_centroids():
    layout = Layout((40, 50))
    some = random_weight(layout)
    made = [KMeans(k).quantize(some, None, 1.0) for k in (64, 16, 4, 2, 1)]
    sizes, losses = [len(packed(each, layout).data) for each in made], [each.distortion for each in made]
    assert sizes == sorted(sizes, reverse=True)
    assert losses == sorted(losses)


def test_the_codebook_is_in_the_bytes_of_its_tensor():
    some = random_weight(LAYOUT)
    quantized = KMeans(200).quantize(some, None, 1.0)
    file = packed(quantized, LAYOUT)
    share = WaterfillFile(file.data).container.tensor_bytes()["w"]
    assert share == file.tensor_bytes["w"] > 4 * len(quantized.rule.values)


@pytest.mark.parametrize("k", [256, 1 << 16])
def test_as_many_centroids_as_weights_give_the_weights_back(k):
    layout = Layout((300, 300)) if k > 256 else Layout((16, 16))
    some = weight(layout, np.random.default_rng(0).permutation(layout.numel)[: layout.numel].reshape(layout.shape) % k)
    quantized = KMeans(k).quantize(some, None, 1.0)
    assert (w_hat(quantized, layout) == some.matrix).all()
    assert quantized.distortion == 0
    assert (WaterfillFile(packed(quantized, layout).data)["w"].numpy() == some.matrix).all()


@pytest.mark.parametrize("value", [0.0, 1.0, -0.3, 1e-30, -1e30, 3e38])
def test_constants_are_one_centroid(value):
    quantized = KMeans().quantize(weight(LAYOUT, value), random_form(LAYOUT), 1.0)
    assert quantized.rule.values.tolist() == [np.float32(value)]
    assert quantized.distortion == 0


def test_a_tensor_without_values_has_no_codebook():
    for shape in ((0, 4), (4, 0)):
        quantized = KMeans().quantize(weight(Layout(shape), 0.0), None, 1.0)
        assert isinstance(quantized.rule, Uniform)


def test_an_importance_below_zero_is_refused_with_the_name_of_the_tensor():
    form = DiagonalForm(np.where(random_form(LAYOUT).values > 1, np.float32(1), np.float32(-1)))
    job = Job(random_weight(LAYOUT), KMeans(3), form, form)
    with pytest.raises(UsageError, match=r"tensor 'w' \(24, 10\): importance has .* entries below zero"):
        Encoder(KMeans(3)).quantize({"w": job}, 1.0)


@pytest.mark.parametrize(
    ("options", "text"),
    [({"k": 0}, "k=0"), ({"k": 65537}, "k=65537"), ({"start": "random"}, "start='random'"),
     ({"iterations": 0}, "iterations=0"), ({"seed": -1}, "seed=-1")],
)  # fmt: skip
def test_options_out_of_range_are_refused(options, text):
    with pytest.raises(UsageError, match=f"{text}.* expected"):
        KMeans(**options)


def test_a_codebook_is_a_rule_of_its_own():
    assert isinstance(KMeans().quantize(random_weight(LAYOUT), None, 1.0).rule, Codebook)
