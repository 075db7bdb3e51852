"""Files for tests of the format: small tensors of every kind of basis, layout, type and reconstruction."""

from dataclasses import dataclass, replace

import numpy as np
from with_adaptive import WithAdaptive
from with_paths import WithPaths
from with_tables import TABLES, WithTables

from waterfill.bases.fitting import fitted_flips, fitted_rotations
from waterfill.bases.turning import coefficients
from waterfill.codec import container
from waterfill.quantize import KMeans, Scalar, Trellis
from waterfill.records import (
    CHANNELS,
    OUT,
    TAPS,
    Basis,
    Coded,
    Cosines,
    Entry,
    Layout,
    Quantized,
    Spread,
    Uniform,
    Weight,
)

FINE, COARSE = 1e-3, 0.1
"""Water levels, where weights have a variance of about one."""


@dataclass
class Case:
    """A tensor of a file.

    Attributes:
        layout: of it.
        basis: in which it is coded.
        quantizer: of its coefficients.
        level: of the water.
        dtype: of the tensor.
    """

    layout: Layout
    basis: Basis | None
    quantizer: object = Scalar()
    level: float = COARSE
    dtype: str = "float32"


def smooth(layout, seed):
    """Weights [out, in] that depend on their neighbours along all axes."""
    values = np.random.default_rng(seed).standard_normal(layout.axes)
    for axis in range(3):
        values = values + np.roll(values, 1, axis) + 0.5 * np.roll(values, 2, axis)
    return (values / values.std()).reshape(layout.axes[0], -1).astype(np.float32)


def covariance(layout, axis, seed):
    vectors = np.moveaxis(smooth(layout, seed).reshape(layout.axes), axis, -1).reshape(-1, layout.axes[axis])
    return vectors.T.astype(np.float64) @ vectors


def cosines():
    """Along every axis: odd lengths, blocks, kernels of one to three axes, all reconstructions and types."""
    yield Case(Layout((515, 1)), Cosines(OUT, 512))
    yield Case(Layout((3, 19, 2)), Cosines(CHANNELS, 8), Trellis(states=8), FINE, "float16")
    yield Case(Layout((4, 2, 7)), Cosines(TAPS, 512), KMeans(5), FINE, "bfloat16")
    yield Case(Layout((2, 2, 5, 6)), Cosines(TAPS, 512), WithTables())
    yield Case(Layout((1, 2, 3, 5, 12)), Cosines(TAPS, 7), WithPaths(down=True))
    yield Case(Layout((2, 2, 45)), Cosines(TAPS, 16), WithAdaptive(), FINE)
    yield Case(Layout((12, 3, 3), transposed=True, groups=3), Cosines(OUT, 512), Scalar(), FINE, "float64")
    yield Case(Layout((7, 13), transposed=True), Cosines(CHANNELS, 512), Trellis(states=4), FINE, "bfloat16")
    yield Case(Layout((12,)), Cosines(CHANNELS, 6), Scalar(), FINE)
    yield Case(Layout((9, 96)), Cosines(CHANNELS, 100))
    yield Case(Layout((8, 1)), None)


def flips():
    """Of kernels with one to three axes, with angles that two tensors share."""
    some = fitted_flips(covariance(Layout((90, 1, 3, 5)), TAPS, 7), (3, 5))
    layout = Layout((12, 2, 3, 5))
    yield Case(layout, some, Scalar(), FINE)
    yield Case(Layout((3, 6, 7)), fitted_flips(covariance(Layout((99, 1, 7)), TAPS, 8), (7,)), Trellis(states=8), FINE)
    yield Case(layout, None)
    yield Case(Layout((2, 9, 5, 3)), some, KMeans(7), FINE, "float16")
    yield Case(Layout((3, 9, 2, 1, 4)), fitted_flips(covariance(Layout((50, 1, 8)), TAPS, 9), (2, 1, 4)), WithTables())
    yield Case(replace(layout, shape=(6, 4, 3, 5), transposed=True, groups=2), some, Scalar(), FINE, "bfloat16")
    yield Case(Layout((5, 4)), fitted_flips(np.eye(1), ()))


def rotations():
    """Along both axes, of some and of all directions, with angles that two tensors share."""
    table = Layout((40, 6), transposed=True)
    some = fitted_rotations(covariance(table, OUT, 1), OUT, 5)
    yield Case(table, some, Scalar(), FINE)
    yield Case(table, some, Trellis(states=8), FINE, "float16")
    layout = Layout((4, 13, 3))
    leading = fitted_rotations(covariance(layout, CHANNELS, 2), CHANNELS, 2)
    yield Case(layout, leading, WithTables(), FINE, "bfloat16")
    yield Case(Layout((26, 6), transposed=True, groups=2), leading, KMeans(9), FINE)
    yield Case(Layout((9, 30)), fitted_rotations(covariance(Layout((9, 30)), OUT, 3), OUT, 8), WithPaths())
    yield Case(Layout((2,)), fitted_rotations(np.array([[2.0, 1.0], [1.0, 1.0]]), CHANNELS, 1), Scalar(), FINE)


def packed(cases):
    """The file of some tensors."""
    entries, quantized = [], {}
    for number, case in enumerate(cases):
        name, matrix = f"{number}.weight", smooth(case.layout, number)
        matrix = matrix if case.basis is None else coefficients(matrix, case.basis, case.layout)
        found = case.quantizer.quantize(Weight(name, matrix, case.layout), None, case.level)
        quantized[name] = replace(found, basis=case.basis)
        entries.append(Entry(name, case.layout.shape, case.dtype, Coded(case.layout)))
    return container.pack(tuple(entries), quantized, {}, "test").data


def steps(layout, tables=False):
    """A rule and a spread with scales of all axes, or with scales of steps and own tables."""
    rule = Uniform(-64, 0, (0, 0, 0), *(np.resize([3, -2], length).astype(np.int8) for length in layout.axes))
    return rule, Spread(5, 40, tables=TABLES) if tables else Spread(5, 40, *rule.scales)


def file_of(tensors, rule=Uniform(0), spread=Spread(5, 32)):  # noqa: B008
    """The file of tensors of zeros, given the layout and the basis of each."""
    entries, quantized = [], {}
    for number, (layout, basis) in enumerate(tensors):
        zeros = np.zeros((layout.axes[0], layout.axes[1] * layout.axes[2]), np.int32)
        quantized[str(number)] = Quantized(zeros, rule, spread, basis=basis)
        entries.append(Entry(str(number), layout.shape, "float32", Coded(layout)))
    return container.pack(tuple(entries), quantized, {}, "test").data


FILES = {"cosines": cosines, "flips": flips, "rotations": rotations}
