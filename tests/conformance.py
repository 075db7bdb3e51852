"""What every quantizer must do; to add one, add a row to `SUBJECTS` in test_conformance.py."""

from dataclasses import dataclass, field

import numpy as np

from waterfill.codec import container
from waterfill.files import WaterfillFile
from waterfill.importance.forms import DiagonalForm
from waterfill.protocols import Quantizer
from waterfill.reconstruct import reconstruct
from waterfill.records import Codebook, Coded, Entry, Layout, Relative, Uniform, Weight

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


def forms_of(layout):
    return None, random_form(layout)


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
