"""Write the test vectors of the format: `PYTHONPATH=src:tests:tests/twins python tests/make_vectors.py`.

Numbers are drawn here and coded by the package; what comes out is what the code of docs/format.md makes of them. They
are frozen: a format that changes them is another one.
"""

import json
from pathlib import Path

import format_page
import numpy as np
from slow_paths import levels_of

from waterfill.codec import adaptive, own, pieces, symbols
from waterfill.codec.container import pack
from waterfill.records import ALL, Adaptive, Coded, Entry, Exact, Lanes, Layout, Paths, Quantized, Spread, Uniform

VECTORS, EXAMPLE, PLAIN = (Path(__file__).with_name(name) for name in ("vectors.json", "example.wf", "plain.wf"))


def integers():
    """Streams of integers: of few bits, of tables with heavy tails, with escapes, with low bits."""
    rng = np.random.default_rng(0)
    for name, family, exponent, largest in (
        ("narrow", 5, 20, 2), ("heavy tails", 0, 50, 60), ("escapes", 8, 30, 70_000), ("low bits", 7, 90, 5000),
    ):  # fmt: skip
        values = rng.integers(-largest, largest + 1, 11).astype(np.int32)
        exponents = exponent + np.arange(11) % 3
        stream = symbols.encode(values, symbols.exponent_codes(exponents.astype(np.int32), family))
        elements = [[family, int(each)] for each in exponents]
        yield {"name": name, "stream": stream.hex(), "elements": elements, "values": values.tolist()}


def paths():
    """Streams of paths, with and without lanes: both kinds of subset 1, starts, elements that stand aside, escapes."""
    rng = np.random.default_rng(1)
    for name, v, zero, log_span, lanes, largest, base in (
        ("one path", 3, False, 20, None, 4, 40), ("zero in both subsets", 6, True, 20, None, 4, 40),
        ("starts", 2, False, 2, None, 3, 30), ("escapes and low bits", 12, True, 20, None, 40_000, 70),
        ("8 lanes", 6, False, 0, Lanes(8, 1), 4, 40), ("32 lanes", 4, True, 0, Lanes(32, 2), 4, 40),
    ):  # fmt: skip
        layout = Layout((5, 6) if lanes is None else (19, 3))
        rows = (np.arange(layout.shape[0]) % 5 - 2).astype(np.int8)
        path = Paths(v, zero, log_span, 7, base + 5, False, -1 if lanes is None else ALL, lanes)
        spread = Spread(5, base, rows, trellis=path)
        sums = np.repeat(rows.astype(int), layout.shape[1])
        indices = rng.integers(-largest, largest + 1, layout.numel).tolist()
        levels = levels_of(indices, path, layout.shape[0], sums, layout.shape[1])
        stream = pieces.encode([levels], [pieces.model(spread, layout, 0, levels.size)])
        elements = [[[5, 7], [base + 2 * int(s), base + 5 + 2 * int(s)]] for s in sums]
        yield {
            "name": name, "stream": stream.hex(), "elements": elements, "v": v, "zero": zero,
            "span": path.span(layout), "lowest": base + 2 * path.least, "lanes": lanes and lanes.count,
            "values": levels.tolist(),
        }  # fmt: skip


def decisions():
    """Streams of adaptive models: with and without taps, with rows and columns of zeros."""
    rng = np.random.default_rng(2)
    for name, shape, width in (("columns alone", (6, 7), 0), ("taps", (5, 3, 4), 4)):
        values = np.rint(rng.laplace(size=(shape[0], int(np.prod(shape[1:])))) * 2).astype(np.int32)
        values *= rng.random(values.shape) < 0.5
        values[2], values[:, 3], values[1, 1] = 0, 0, -300
        layout = Layout(shape)
        model = adaptive.model(Adaptive(width), layout, 0, values.size)
        stream = pieces.encode([values.reshape(-1)], [model])
        yield {
            "name": name, "stream": stream.hex(), "columns": model.columns, "taps": model.taps, "width": width,
            "values": values.reshape(-1).tolist(),
        }  # fmt: skip


def tables():
    """Own tables from the differences of their roots."""
    for roots in ([3, 0, 900, 1], [1023, 1023], [40, 41, 39, 0, 7, 12, 0]):
        differences = np.diff(roots, prepend=0).tolist()
        frequencies = own.frequencies(own.from_differences(-2, np.array(differences, np.int32))).tolist()
        yield {"differences": differences, "frequencies": frequencies}


def values():
    """Levels, patterns of relative values, and roundings of float32 to shorter types, as bits."""
    uniform = [[k, offset, [3, -2, 9]] for k in (-5, -3, -2, -1, 0, 1, 2, 3, 70_000) for offset in (0, -4)]
    relative = [[k, 4, 500, signed] for k in (-1200, -3, 0, 1, 2, 3, 40, 3000) for signed in (False, True)]
    edges = 0, -0.0, 1, 1.00390625, 1.01171875, -2.5e-8, 6e-8, 65519, 65520, 1e-40, 3.4e38, -3.4e38
    floats = np.array(edges, np.float32)
    limits = {"float16": np.float32(65504), "bfloat16": np.array(0x7F7F0000, np.uint32).view(np.float32)}
    rounded = []
    for value in floats:
        row = {"float32": int(value.view(np.uint32))}
        clipped = {name: np.clip(value, -limit, limit) for name, limit in limits.items()}
        row["float16"] = int(clipped["float16"].astype(np.float16).view(np.uint16))
        bits = int(clipped["bfloat16"].view(np.uint32))
        row["bfloat16"] = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        rounded.append(row)
    return {
        "levels": [[*each, format_page.level_of(*each)] for each in uniform],
        "patterns": [[*each, format_page.pattern_of(*each)] for each in relative],
        "rounded": rounded,
    }


def example(*, plain=False):
    """The file of the page: a matrix of six weights, and a counter without loss."""
    layout = Layout((2, 3))
    weights = Quantized(np.array([[0, 1, -1], [2, 0, -3]], np.int32), Uniform(-128), Spread(5, 33))
    entries = Entry("w", (2, 3), "float32", Coded(layout)), Entry("n", (1,), "int64", Exact("steps"))
    return pack(entries, {"w": weights}, {"n": (1000).to_bytes(8, "little")}, "an example", plain=plain).data


def main():
    """Write all files."""
    found = {"integers": [*integers()], "paths": [*paths()], "adaptive": [*decisions()], "tables": [*tables()]}
    parts = []
    for name, some in (found | values()).items():
        lines = ",\n".join(json.dumps(each) for each in some)
        parts.append(f'"{name}": [\n{lines}\n]')
    VECTORS.write_text("{\n" + ",\n".join(parts) + "\n}\n")
    EXAMPLE.write_bytes(example())
    PLAIN.write_bytes(example(plain=True))


if __name__ == "__main__":
    main()
