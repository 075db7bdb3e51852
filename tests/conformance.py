"""What every quantizer, every form and every estimator of importances must do.

To add one, add a row to `SUBJECTS`, `FORMS` or `ESTIMATORS` in test_conformance.py.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from torch import nn

from waterfill.codec import container
from waterfill.files import WaterfillFile
from waterfill.importance import DiagonalForm, KroneckerForm
from waterfill.models import inventory
from waterfill.protocols import DataFree, Estimator, Quantizer
from waterfill.reconstruct import reconstruct
from waterfill.records import Codebook, Coded, Entry, Layout, Relative, Uniform, Weight
from waterfill.theory.scaled_source import fit_scaled_source

SMALLEST_STEP = 2.0**-93
"""Steps of the format are not much smaller."""


@dataclass(frozen=True)
class Subject:
    quantizer: Quantizer
    layouts: tuple[Layout, ...] = field(repr=False)


def weight(layout, values):
    out, channels, taps = layout.axes
    matrix = np.broadcast_to(np.asarray(values, np.float32), (out, channels * taps))
    return Weight("w", matrix.copy(), layout)


def random_weight(layout, seed=0, scale=1.0):
    out, channels, taps = layout.axes
    return weight(layout, np.random.default_rng(seed).laplace(size=(out, channels * taps)) * scale)


def random_form(layout, seed=1):
    out, channels, taps = layout.axes
    return DiagonalForm(np.random.default_rng(seed).gamma(0.3, size=(out, channels * taps)).astype(np.float32))


def w_hat(quantized, layout):
    return reconstruct(quantized.symbols.reshape(-1), quantized.rule, layout).reshape(quantized.symbols.shape)


def fine(matrix):
    """A water level far below the cost of any weight."""
    power = float(np.square(matrix, dtype=np.float64).mean()) if matrix.size else 1.0
    return 2.0**-44 * min(power or 1.0, 1.0)


def packed(quantized, layout):
    entries = (Entry("w", layout.shape, "float32", Coded(layout)),)
    return container.pack(entries, {"w": quantized}, {}, "test")


def check_record(quantized, weight, form):
    """Types and shapes are those of the record, values are finite, distortion is what the form says."""
    assert quantized.symbols.dtype == np.int32
    assert quantized.symbols.shape == weight.matrix.shape
    assert isinstance(quantized.rule, Uniform | Relative | Codebook)
    values = w_hat(quantized, weight.layout)
    assert values.dtype == np.float32
    assert np.isfinite(values).all()
    assert np.isfinite([quantized.bits, quantized.distortion]).all()
    error = weight.matrix - values
    cost = float(np.square(error, dtype=np.float64).sum()) if form is None else form.cost(error)
    assert np.isclose(quantized.distortion, cost, rtol=1e-9, atol=0)


def check_file(quantized, layout):
    """The file holds the values that the record means, in the bits that it says."""
    file = packed(quantized, layout)
    stored = WaterfillFile(file.data)["w"].numpy()
    assert (stored == layout.from_matrix(w_hat(quantized, layout))).all()
    spent = 8 * file.tensor_bytes["w"]
    assert abs(spent - quantized.bits) <= 0.02 * spent + 200


def run(subject, weight, form, water_level):
    quantized = subject.quantizer.quantize(weight, form, water_level)
    check_record(quantized, weight, form)
    check_file(quantized, weight.layout)
    return quantized


def random_product(layout, seed=2):
    """A form with cross terms."""
    out, channels, taps = layout.axes
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((channels * taps, channels * taps))
    return KroneckerForm(rng.uniform(0.5, 2, size=out), (root @ root.T)[None])


def forms_of(layout):
    return None, random_form(layout), random_product(layout)


# The checks, each of one subject


def small_water_levels_give_the_weights_back(subject):
    for layout in subject.layouts:
        for form in forms_of(layout):
            some = random_weight(layout)
            values = w_hat(run(subject, some, form, fine(some.matrix)), layout)
            assert np.abs(values - some.matrix).max() <= 2.0**-18 * np.abs(some.matrix).max()


def every_water_level_is_packed_in_the_bits_it_says(subject):
    for layout in subject.layouts:
        for form in forms_of(layout):
            for level in range(-20, 12, 4):
                run(subject, random_weight(layout, level + 20), form, 2.0**level)


def the_same_input_gives_the_same_output(subject):
    for layout in subject.layouts:
        some, form = random_weight(layout), random_form(layout)
        matrix, diagonal = some.matrix.copy(), form.values.copy()
        one = subject.quantizer.quantize(some, form, 0.01)
        two = subject.quantizer.quantize(some, form, 0.01)
        assert packed(one, layout).data == packed(two, layout).data
        assert (one.bits, one.distortion) == (two.bits, two.distortion)
        assert (some.matrix == matrix).all()
        assert (form.values == diagonal).all()


def zeros_stay_zero_and_cost_little(subject):
    for layout in subject.layouts:
        for form in forms_of(layout):
            quantized = run(subject, weight(layout, 0.0), form, 1e-3)
            assert not w_hat(quantized, layout).any()
            assert quantized.distortion == 0
            assert quantized.bits < 0.1 * layout.numel + 50


def constants_are_kept(subject):
    for layout in subject.layouts:
        for form in forms_of(layout):
            for value in (1.0, -0.3):
                quantized = run(subject, weight(layout, value), form, 2.0**-46)
                assert np.allclose(w_hat(quantized, layout), value, rtol=2.0**-18)


def one_element(subject):
    for layout in subject.layouts:
        single = Layout((1,) * len(layout.shape), layout.transposed)
        for value in (0.0, 1.0, -2.5):
            for form in (None, DiagonalForm(np.ones((1, 1), np.float32)), DiagonalForm(np.zeros((1, 1), np.float32))):
                values = w_hat(run(subject, weight(single, value), form, 2.0**-44), single)
                assert (form is not None and not form.values.any()) or abs(values[0, 0] - value) <= 1e-5 * abs(value)


def no_elements(subject):
    for layout in subject.layouts:
        for axis in range(len(layout.shape)):
            shape = list(layout.shape)
            shape[axis] = 0
            empty = Layout(tuple(shape), layout.transposed)
            some = weight(empty, 0.0)
            for form in (None, DiagonalForm(some.matrix)):
                quantized = subject.quantizer.quantize(some, form, 1.0)
                check_record(quantized, some, form)
                assert quantized.bits <= 8


def huge_and_tiny_magnitudes(subject):
    for layout in subject.layouts:
        for scale in (1e-30, 1e-12, 1e12, 1e30):
            some = random_weight(layout, scale=scale)
            peak = float(np.abs(some.matrix).max())
            for form in forms_of(layout):
                values = w_hat(run(subject, some, form, fine(some.matrix)), layout)
                assert np.abs(values - some.matrix).max() <= 2.0**-18 * peak + 64 * SMALLEST_STEP
                coarse = w_hat(run(subject, some, form, 0.1 * scale**2), layout)
                assert np.abs(coarse).max() <= 8 * peak + 64 * SMALLEST_STEP


def huge_and_tiny_together(subject):
    for layout in subject.layouts:
        some = random_weight(layout)
        some.matrix[:, ::2] *= 1e30
        some.matrix[:, ::3] = 0
        for form in forms_of(layout):
            values = w_hat(run(subject, some, form, 1e-30), layout)
            assert np.abs(values - some.matrix).max() <= 2.0**-18 * np.abs(some.matrix).max()


def huge_and_tiny_importance(subject):
    for layout in subject.layouts:
        some, form = random_weight(layout), random_form(layout)
        for scale in (1e-25, 1e25):
            scaled = DiagonalForm((form.values * scale).astype(np.float32))
            values = w_hat(run(subject, some, scaled, scale * 2.0**-44), layout)
            assert np.abs(values - some.matrix).max() <= 2.0**-18 * np.abs(some.matrix).max()


def importance_zero_everywhere(subject):
    for layout in subject.layouts:
        form = DiagonalForm(np.zeros_like(random_weight(layout).matrix))
        for scale in (1e-30, 1.0, 1e30):
            assert run(subject, random_weight(layout, scale=scale), form, 0.01).distortion == 0


def importance_zero_in_some_places(subject):
    for layout in subject.layouts:
        for rows, columns in ((2, 1), (1, 2), (3, 2)):
            form = random_form(layout)
            form.values[1::rows] = 0 if rows > 1 else form.values[1::rows]
            form.values[:, 1::columns] = 0 if columns > 1 else form.values[:, 1::columns]
            some = random_weight(layout)
            values = w_hat(run(subject, some, form, 2.0**-44), layout)
            counts = form.values > 0
            assert np.abs(values - some.matrix)[counts].max() <= 2.0**-18 * np.abs(some.matrix).max()


def memory_order_does_not_matter(subject):
    for layout in subject.layouts:
        some, form = random_weight(layout), random_form(layout)
        wide = np.zeros((some.matrix.shape[0], 2 * some.matrix.shape[1]), np.float32)
        for strange in (wide[:, ::2], np.asfortranarray(wide[:, : some.matrix.shape[1]])):
            strange[:] = some.matrix
            turned = DiagonalForm(np.asfortranarray(form.values))
            one = subject.quantizer.quantize(some, form, 0.01)
            two = subject.quantizer.quantize(Weight("w", strange, layout), turned, 0.01)
            assert packed(one, layout).data == packed(two, layout).data


CHECKS = (
    small_water_levels_give_the_weights_back,
    every_water_level_is_packed_in_the_bits_it_says,
    the_same_input_gives_the_same_output,
    zeros_stay_zero_and_cost_little,
    constants_are_kept,
    one_element,
    no_elements,
    huge_and_tiny_magnitudes,
    huge_and_tiny_together,
    huge_and_tiny_importance,
    importance_zero_everywhere,
    importance_zero_in_some_places,
    memory_order_does_not_matter,
)

FIXED_CHECKS = (
    every_water_level_is_packed_in_the_bits_it_says,
    the_same_input_gives_the_same_output,
    zeros_stay_zero_and_cost_little,
    no_elements,
    importance_zero_everywhere,
    memory_order_does_not_matter,
)
"""Those of a quantizer with a rate of its own, which the water level does not move."""


# Forms


def errors_of(form, seed=3):
    return np.random.default_rng(seed).standard_normal(form.diagonal().shape).astype(np.float32)


def weights_of(form):
    """Weights of a form, with another scale in every row, and the source that is fitted to them."""
    matrix = errors_of(form, 4) * np.exp(errors_of(form, 5)[:, :1])
    return matrix, fit_scaled_source(matrix[:, :, None])


def rows_cost_what_they_cost_in_the_whole(form):
    half = len(form.diagonal()) // 2
    for rows in (slice(0, half), slice(half, None), slice(1, half), slice(None, None, 2), slice(None)):
        error = np.zeros_like(errors_of(form))
        error[rows] = errors_of(form)[rows]
        some = form.rows_of(rows)
        np.testing.assert_array_equal(some.diagonal(), form.diagonal()[rows])
        assert some.cost(error[rows]) == pytest.approx(form.cost(error), rel=1e-6)


def scaling_multiplies_every_price(form):
    scaled, (matrix, source) = form.scaled(3.0), weights_of(form)
    np.testing.assert_allclose(scaled.diagonal(), 3 * form.diagonal(), rtol=1e-6)
    assert scaled.cost(errors_of(form)) == pytest.approx(3 * form.cost(errors_of(form)), rel=1e-6)
    assert scaled.scale_total == pytest.approx(3 * form.scale_total, rel=1e-6)
    one, three = (np.sort(each.component_variances(source, matrix)) for each in (form, scaled))
    np.testing.assert_allclose(three, 3 * one, rtol=1e-6)


def powers_are_about_a_mean(form):
    assert form.tempered(0.7, 1.0) is form
    flat = form.tempered(0.7, 0.0)
    assert flat.scale_total == pytest.approx(0.7 * form.diagonal().size, rel=1e-3)
    twice = form.tempered(0.7, 0.5).tempered(0.7, 0.5)
    np.testing.assert_allclose(twice.diagonal(), form.tempered(0.7, 0.25).diagonal(), rtol=1e-3)


def components_have_the_trace_of_the_whole(form):
    matrix, source = weights_of(form)
    found = form.component_variances(source, matrix)
    assert found.dtype == np.float64
    assert found.shape == (matrix.size,)
    powers = source.entropy_powers(matrix)
    assert found.sum() == pytest.approx(float((powers * form.diagonal()).sum()), rel=1e-6)
    parts = np.concatenate([part.volumes() for part in form.products(source, matrix)])
    np.testing.assert_array_equal(np.sort(parts), np.sort(found))


def components_and_what_is_left_of_weights_have_one_determinant(form):
    """But for the damping of a factor, by 1e-4 of its mean, which only adds."""
    matrix, source = weights_of(form)
    rows, columns = form.conditional_variances(source, matrix)
    left = np.multiply.outer(rows, columns)
    assert left.size == matrix.size
    found = np.log(form.component_variances(source, matrix)).sum()
    assert -1e-6 * abs(found) <= np.log(left).sum() - found <= 1e-3 * matrix.size


def cross_terms_are_those_between_columns(form):
    error = np.zeros_like(errors_of(form))
    singles = 0.0
    for column in (0, 1):
        one = np.zeros_like(error)
        one[0, column] = error[0, column] = 1.5
        singles += form.cost(one)
    assert form.has_cross_terms == (form.cost(error) != pytest.approx(singles, rel=1e-6))


def a_form_is_shrunk_once(form):
    once = form.shrunk()
    assert type(once) is type(form)
    np.testing.assert_array_equal(once.diagonal(), once.shrunk().diagonal())


def the_unit_stays(form):
    form = replace(form, factor=0.25, unit="bit")
    changed = [form.rows_of(slice(0, 2)), form.scaled(2.0), form.tempered(1.0, 0.5), form.tempered(1.0, 1.0)]
    changed.append(form.shrunk())
    for name, arguments in (("regularised", (0.1,)), ("clipped", ()), ("damped", (0.1,))):
        if hasattr(form, name):
            changed.append(getattr(form, name)(*arguments))
    assert {(each.factor, each.unit) for each in changed} == {(0.25, "bit")}


FORM_CHECKS = (
    rows_cost_what_they_cost_in_the_whole,
    scaling_multiplies_every_price,
    powers_are_about_a_mean,
    components_have_the_trace_of_the_whole,
    components_and_what_is_left_of_weights_have_one_determinant,
    cross_terms_are_those_between_columns,
    a_form_is_shrunk_once,
    the_unit_stays,
)


# Estimators


def classifier():
    """A network with an embedding, a convolution with groups, a norm and a layer."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(4)
    norm.running_var.copy_(torch.rand(4) + 0.5)
    convolutions = nn.Conv1d(4, 4, 2, groups=2), norm, nn.ReLU()
    return nn.Sequential(nn.Embedding(6, 5), *convolutions, nn.Flatten(), nn.Linear(16, 3))


def classified(count=3):
    generator = torch.Generator().manual_seed(0)
    sizes = [3 + number % 2 for number in range(count)]
    return [(torch.randint(0, 6, (n, 4), generator=generator), torch.arange(n) % 3) for n in sizes]


def estimated(estimator, model, data, **options):
    """Its forms, of logits where it can, else of values; vectors have none where it looks at weights only."""
    output = "values" if estimator.name == "regression" else "logits"
    return estimator.estimate(model, data, output, **options)


def there_is_a_form_for_every_learned_tensor(estimator: Estimator):
    for folded in (True, False):
        model = classifier()
        weights = inventory(model, fold_norms=folded).weights
        learned = [
            name
            for name, weight in weights.items()
            if not (weight.is_vector and isinstance(estimator, DataFree)) and (folded or "running" not in name)
        ]
        forms = estimated(estimator, model, classified(), fold_norms=folded)
        assert forms.keys() >= set(learned)
        for name in learned:
            diagonal = forms[name].diagonal()
            assert diagonal.dtype == np.float32
            assert diagonal.shape == weights[name].matrix.shape
            assert np.isfinite(diagonal).all()


def a_single_error_costs_what_the_diagonal_says(estimator):
    for form in estimated(estimator, classifier(), classified()).values():
        diagonal = form.diagonal()
        rng = np.random.default_rng(0)
        for row, column in zip(*(rng.integers(0, size, 4) for size in diagonal.shape), strict=True):
            error = np.zeros_like(diagonal)
            error[row, column] = 1.5
            others = form.quartic()[row, column] * 1.5**4 if hasattr(form, "quartic") else 0.0
            assert form.cost(error) == pytest.approx(diagonal[row, column] * 1.5**2 + others, rel=1e-6)
        assert form.cost(np.zeros_like(diagonal)) == 0


def errors_of_twice_the_size_cost_more(estimator):
    for form in estimated(estimator, classifier(), classified()).values():
        error = np.random.default_rng(0).standard_normal(form.diagonal().shape).astype(np.float32)
        if not hasattr(form, "quartic"):
            assert form.cost(2 * error) == pytest.approx(4 * form.cost(error), rel=1e-6)


def the_same_data_give_the_same_forms(estimator):
    one, two = (estimated(estimator, classifier(), classified()) for _ in range(2))
    for name, form in one.items():
        np.testing.assert_array_equal(form.diagonal(), two[name].diagonal())


def the_model_is_left_as_it_was(estimator):
    model = classifier().train()
    model[1].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    estimated(estimator, model, classified())
    assert all(module.training for module in model.modules())
    assert [p.requires_grad for p in model.parameters()] == [True, False] + [True] * 5
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def states_are_values_that_merge(estimator):
    if not hasattr(estimator, "begin"):
        return
    model, data = classifier(), classified()
    empty = estimator.begin(model)
    parts = [empty.update(batch) for batch in data]
    merged = parts[2].merge(empty).merge(parts[0].merge(parts[1]))
    whole = estimated(estimator, model, data)
    for name, form in merged.forms().items():
        expected = whole[name].diagonal()
        np.testing.assert_allclose(form.diagonal(), expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())
    assert not any(total.any() for total in empty.moments.sums.values())


ESTIMATOR_CHECKS = (
    there_is_a_form_for_every_learned_tensor,
    a_single_error_costs_what_the_diagonal_says,
    errors_of_twice_the_size_cost_more,
    the_same_data_give_the_same_forms,
    the_model_is_left_as_it_was,
    states_are_values_that_merge,
)
