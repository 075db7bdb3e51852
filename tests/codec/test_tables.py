import importlib.util
from pathlib import Path

import mpmath
import numpy as np
import pytest
from scipy.stats import gennorm

from waterfill.codec import subsets, tables

SHAPES = (0.4, 0.5, 0.6, 0.7, 0.8, 1, 1.2, 1.5, 2)


def test_every_table_sums_to_4096_and_no_symbol_fills_it():
    frequencies = tables.frequencies()
    assert frequencies.shape == (tables.CLASSES, 256)
    assert (frequencies.sum(axis=1) == 4096).all()
    assert frequencies.min() == 0
    assert frequencies.max() < 4096
    for cls in range(tables.FIRST_BANK_CLASS, tables.CLASSES):
        used = 2 * tables.largest()[cls] + 2
        assert (frequencies[cls, :used] > 0).all()
        assert (frequencies[cls, used:] == 0).all()


def test_decoder_slots_are_the_inverse_of_frequencies_and_starts():
    slots = tables.decoder_slots().reshape(tables.CLASSES, 4096)
    for cls in range(0, tables.CLASSES, 37):
        for slot in range(4096):
            symbol = int(slots[cls, slot] & 255)
            assert slots[cls, slot] >> 20 == tables.frequencies()[cls, symbol]
            assert slot - tables.starts()[cls, symbol] == slots[cls, slot] >> 8 & 4095


@pytest.mark.parametrize("family", range(9))
def test_tables_are_generalised_gaussians(family):
    for scale in range(0, tables.SCALES, 8):
        sigma, shape = 2 ** ((scale - 32) / 8), SHAPES[family]
        model = gennorm(shape, scale=sigma / gennorm(shape).std())
        last = int(tables.largest()[tables.bank_class(family, scale)])
        row = tables.frequencies()[tables.bank_class(family, scale)]
        exact = np.array([model.cdf(k + 0.5) - model.cdf(k - 0.5) for k in range(last + 1)])
        assert np.allclose(row[0 : 2 * last + 1 : 2] / 4096, exact, atol=0.025 * exact.max() + 1.1 / 4096)


def test_the_script_makes_the_committed_tables():
    path = Path(__file__).parents[2] / "scripts" / "make_tables.py"
    spec = importlib.util.spec_from_file_location("make_tables", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for family, scale in ((0, 0), (2, 30), (5, 56), (8, 33)):
        sigma = mpmath.mpf(2) ** (mpmath.mpf(scale - 32) / 8)
        for kind, (file, signs) in enumerate((("bank.bin", 1), ("half.bin", 2), ("zero.bin", 1))):
            made = script.table(script.tails(file, mpmath.mpf(script.SHAPES[family]), sigma), signs)
            assert made == subsets.magnitudes(kind)[family * tables.SCALES + scale].tolist()


def test_powers_are_the_nearest_float32_and_octaves_are_exact():
    index = np.arange(-6000, 6001, 17)
    exact = [mpmath.mpf(2) ** (mpmath.mpf(int(k)) / 64) for k in index]
    assert all(
        abs(mpmath.mpf(float(p)) / e - 1) <= mpmath.mpf(2) ** -24
        for p, e in zip(tables.power(index), exact, strict=True)
    )
    assert (tables.power(index + 64) == 2 * tables.power(index)).all()


def test_code_lengths_are_those_of_the_tables_and_rise_with_the_magnitude():
    for family in range(tables.FAMILIES):
        lengths = tables.code_lengths(family)
        for scale in range(0, tables.SCALES, 5):
            cls = tables.bank_class(family, scale)
            last = int(tables.largest()[cls])
            assert lengths[scale, last] == pytest.approx(12 - np.log2(tables.frequencies()[cls, 2 * last]))
            assert (np.diff(lengths[scale, 1 : last + 1]) >= 0).all()


def test_a_damaged_bank_is_refused(monkeypatch):
    monkeypatch.setattr(tables, "SHA256", "0" * 64)
    tables.magnitudes.cache_clear()
    with pytest.raises(RuntimeError, match="reinstall"):
        tables.magnitudes()
    monkeypatch.undo()
    tables.magnitudes.cache_clear()
