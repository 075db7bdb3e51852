"""Compute the banks of frozen frequency tables: `python scripts/make_tables.py [--check]`.

Every table is the distribution of a generalised Gaussian of one shape and one standard deviation, rounded to whole
steps (`bank.bin`), to half steps plus whole ones (`half.bin`), or to these and zero (`zero.bin`), in integer
frequencies that sum to 4096. `odds.bin` has the probability, in 1/4096, of every logarithm of odds from -8 to 8, in the
middle of 1/64 nats, from 3 to 4093, as little-endian 16-bit integers. All arithmetic is `mpmath` at 40 digits, so that
every machine computes the same integers.

Format of the other files: for every shape, for every scale, one byte K, then the frequencies of the magnitudes 0..K as
little-endian 16-bit integers. A magnitude has its frequency once for each sign, zero of `bank.bin` and `zero.bin` once;
what is left of 4096 is the escape.

Magnitude m of `half.bin` is the cell m..m + 1; that of `zero.bin` the cell m - 1..m, but for zero and one: what is
nearer to zero than to one half is zero.
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
FOLDER = Path(__file__).resolve().parent.parent / "src" / "waterfill" / "codec"
FILES = ("bank.bin", "half.bin", "zero.bin", "odds.bin")


def edge(file: str, k: int) -> mp.mpf:
    """Where the cell of magnitude k begins, k >= 1."""
    if file == "bank.bin":
        return k - mp.mpf("0.5")
    if file == "half.bin":
        return mp.mpf(k)
    return mp.mpf(k - 1) if k > 1 else mp.mpf("0.25")


def tails(file: str, shape: mp.mpf, sigma: mp.mpf) -> list[mp.mpf]:
    """P(|x| > edge of k) for k = 1, 2, ... LARGEST + 1 under a generalised Gaussian."""
    alpha = sigma * mp.sqrt(mp.gamma(1 / shape) / mp.gamma(3 / shape))
    return [mp.gammainc(1 / shape, (edge(file, k) / alpha) ** shape, regularized=True) for k in range(1, LARGEST + 2)]


def table(tail: list[mp.mpf], signs_of_zero: int) -> list[int]:
    """Frequencies of the magnitudes 0..K (per sign); the escape takes what is left and at least one for each sign."""
    magnitude = [1 - tail[0]] + [tail[k - 1] - tail[k] for k in range(1, LARGEST + 1)]
    last = max(1, max((k for k in range(1, LARGEST + 1) if magnitude[k] * TOTAL >= 0.8), default=1))
    escape = signs_of_zero * max(1, int(mp.nint(tail[last] * TOTAL / signs_of_zero)))
    frequencies = [max(1, int(mp.nint(magnitude[k] * TOTAL / 2))) for k in range(1, last + 1)]
    zero = (TOTAL - 2 * sum(frequencies) - escape) // signs_of_zero
    while signs_of_zero * zero < magnitude[0] * TOTAL * mp.mpf("0.98"):  # small ones, rounded up, took too much of it
        largest = max(range(last), key=lambda k: frequencies[k])
        frequencies[largest] -= 1
        zero += 2 // signs_of_zero
    return [zero, *frequencies]


def odds() -> bytes:
    """The whole file of probabilities."""
    middles = (mp.mpf(2 * (i - 512) + 1) / 128 for i in range(1024))
    return struct.pack("<1024H", *(min(max(int(mp.nint(TOTAL / (1 + mp.exp(-z)))), 3), TOTAL - 3) for z in middles))


def bank(file: str) -> bytes:
    """The whole file."""
    if file == "odds.bin":
        return odds()
    parts = []
    for shape in SHAPES:
        for scale in SCALES:
            tail = tails(file, mp.mpf(shape), mp.mpf(2) ** (mp.mpf(scale) / 8))
            frequencies = table(tail, 2 if file == "half.bin" else 1)
            parts.append(struct.pack(f"<B{len(frequencies)}H", len(frequencies) - 1, *frequencies))
    return b"".join(parts)


if __name__ == "__main__":
    for name in FILES:
        made = bank(name)
        if "--check" in sys.argv:
            if (FOLDER / name).read_bytes() != made:
                sys.exit(f"{name} differs from what this script computes")
        else:
            (FOLDER / name).write_bytes(made)
