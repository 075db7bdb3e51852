"""Compute the bank of frozen frequency tables: `python scripts/make_tables.py [--check]`.

Every table is the distribution of a generalised Gaussian of one shape and one standard deviation, rounded to whole
steps, in integer frequencies that sum to 4096. All arithmetic is `mpmath` at 40 digits, so that every machine computes
the same integers. Format of the file: for every shape, for every scale, one byte K, then the frequencies of the
magnitudes 0..K as little-endian 16-bit integers. A magnitude above zero has its frequency once for each sign; what is
left of 4096 is the escape.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import mpmath as mp

mp.mp.dps = 40

SHAPES = ("0.4", "0.5", "0.6", "0.7", "0.8", "1", "1.2", "1.5", "2")
SCALES = range(-32, 25)  # eighths of an octave: 1/16 to 8 steps
TOTAL = 4096
LARGEST = 126
BANK = Path(__file__).resolve().parent.parent / "src" / "waterfill" / "codec" / "bank.bin"


def tails(shape: mp.mpf, sigma: mp.mpf) -> list[mp.mpf]:
    """P(|x| > k - 1/2) for k = 1, 2, ... LARGEST + 1 under a generalised Gaussian."""
    alpha = sigma * mp.sqrt(mp.gamma(1 / shape) / mp.gamma(3 / shape))
    return [
        mp.gammainc(1 / shape, ((k - mp.mpf("0.5")) / alpha) ** shape, regularized=True) for k in range(1, LARGEST + 2)
    ]


def table(shape: mp.mpf, sigma: mp.mpf) -> list[int]:
    """Frequencies of the magnitudes 0..K (per sign); the escape takes what is left and at least 1."""
    tail = tails(shape, sigma)
    magnitude = [1 - tail[0]] + [tail[k - 1] - tail[k] for k in range(1, LARGEST + 1)]
    last = max(1, max((k for k in range(1, LARGEST + 1) if magnitude[k] * TOTAL >= 0.8), default=1))
    escape = max(1, int(mp.nint(tail[last] * TOTAL)))
    frequencies = [max(1, int(mp.nint(magnitude[k] * TOTAL / 2))) for k in range(1, last + 1)]
    zero = TOTAL - 2 * sum(frequencies) - escape
    while zero < magnitude[0] * TOTAL * mp.mpf("0.98"):  # rounding up small frequencies took too much from zero
        largest = max(range(last), key=lambda k: frequencies[k])
        frequencies[largest] -= 1
        zero += 2
    return [zero, *frequencies]


def bank() -> bytes:
    """The whole file."""
    parts = []
    for shape in SHAPES:
        for scale in SCALES:
            frequencies = table(mp.mpf(shape), mp.mpf(2) ** (mp.mpf(scale) / 8))
            parts.append(struct.pack(f"<B{len(frequencies)}H", len(frequencies) - 1, *frequencies))
    return b"".join(parts)


if __name__ == "__main__":
    made = bank()
    if "--check" in sys.argv:
        sys.exit(0 if BANK.read_bytes() == made else "bank.bin differs from what this script computes")
    BANK.write_bytes(made)
