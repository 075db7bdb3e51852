"""A decoder written from docs/format.md alone: plain Python, whole numbers up to the symbols, no package code."""

import itertools
import json
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import slow_bases
import zstandard

FOLDER = Path(__file__).parents[2] / "src" / "waterfill" / "codec"
PARITIES = {2: "5 2", 3: "17 2", 4: "35 16", 5: "43 24", 6: "141 66", 7: "365 156", 8: "405 356", 9: "1655 746",
            10: "2413 1132", 11: "4117 2704", 12: "15303 7064"}  # fmt: skip


def read_bank(name):
    data, at, tables = (FOLDER / name).read_bytes(), 0, []
    while at < len(data):
        count = data[at] + 1
        row = [f for f in struct.unpack_from(f"<{count}H", data, at + 1) for _ in range(2)]
        row = row if name == "half.bin" else row[1:]
        tables.append([*row, 4096 - sum(row)])
        at += 1 + 2 * count
    return tables


PHRASES = zstandard.ZstdCompressionDict((FOLDER / "phrases.bin").read_bytes(), zstandard.DICT_TYPE_RAWCONTENT)
UNIFORM = [[4096 >> bits] * (1 << bits) for bits in range(1, 9)]
TABLES = UNIFORM + read_bank("bank.bin")
ODDS = struct.unpack("<1024H", (FOLDER / "odds.bin").read_bytes())
SUBSETS = read_bank("bank.bin"), read_bank("half.bin"), read_bank("zero.bin")


def turns(count, span, lanes):
    """Which elements of a path are coded one after the other: each with its lane and its state of the trellis."""
    if lanes is None:
        return [(n, n % 8, 0) for n in range(count)]
    places = itertools.product(range(0, count, lanes * span), range(min(span, count)), range(lanes))
    every = [(first + lane * span + step, lane, lane) for first, step, lane in places]
    return [(n, lane, state) for n, lane, state in every if n < count]


class Stream:
    def __init__(self, data, lanes=8):
        self.states = list(struct.unpack_from(f"<{lanes}I", data))
        self.words = list(struct.unpack(f"<{(len(data) - 4 * lanes) // 2}H", data[4 * lanes :]))[::-1]

    def run(self, classes):
        return self.symbols([TABLES[cls] for cls in classes])

    def symbols(self, tables):
        return [self.symbol(n % 8, table) for n, table in enumerate(tables)]

    def symbol(self, lane, table):
        x, start, symbol = self.states[lane], 0, 0
        slot = x % 4096
        while start + table[symbol] <= slot:
            start += table[symbol]
            symbol += 1
        x = table[symbol] * (x // 4096) + slot - start
        self.states[lane] = x if x >= 1 << 16 else (x << 16) + self.words.pop()
        return symbol

    def path(self, models, log_states, zero, span, lowest, lanes):
        """Levels of (families, exponents) pairs of a tensor with a trellis."""
        h0, h1 = (int(mask, 8) >> 1 for mask in PARITIES[log_states].split())
        states, levels = {}, [None] * len(models)
        for n, lane, walk in turns(len(models), span, lanes):
            families, exponents = models[n]
            state = states[walk] if n % span else 0
            aside = exponents[0] < lowest
            q = 0 if aside else (state & h1).bit_count() % 2
            k = self.index(lane, 2 * q if zero else q, families[q], min(max(exponents[q], 0), 280))
            levels[n] = 2 * k + q if not zero else 2 * k - q * ((k > 0) - (k < 0))
            if not aside:
                state = (2 * state + (k + (state & h0).bit_count()) % 2) % 2**log_states
            states[walk] = state
        return levels

    def index(self, lane, kind, family, exponent):
        low = max(0, (exponent - 49) // 8)
        table = SUBSETS[kind][57 * family + min(exponent - 8 * low, 56)]
        symbol, rest, between = self.symbol(lane, table), 0, kind == 1
        for i in range(0, low, 8):
            rest |= self.symbol(lane, UNIFORM[min(low - i, 8) - 1]) << i
        magnitude, negative = (symbol // 2, symbol % 2) if between else ((symbol + 1) // 2, symbol % 2 == 0)
        if symbol == len(table) - 1:
            count = self.symbol(lane, UNIFORM[1]) + 1
            extra = sum(self.symbol(lane, UNIFORM[7]) << (8 * i) for i in range(count))
            last = (len(table) - 1) // 2 - 1 if between else (len(table) - 2) // 2
            magnitude, negative = extra // 2 + last + 1, extra % 2
        high = magnitude if not negative else -magnitude - between
        return (high << low) + rest - (0 if between else 1 << low >> 1)

    def adaptive(self, count, columns, taps, width):
        """The values of a piece of a tensor with an adaptive model."""
        piece = Learning(self, columns, taps, width)
        rows, places = piece.flags("rows", count // columns, 0), piece.flags("columns", columns, width)
        values = [[0] * columns for _ in range(count // columns)]
        for row in rows:
            for column in places:
                last = column == places[-1] and not any(values[row])
                last |= row == rows[-1] and not any(line[column] for line in values)
                values[row][column] = piece.element(values[row], row, column, last)
        return [value for line in values for value in line]

    def values(self, models, own):
        """Integers of (tensor, family, exponent) triples, those of own tables first."""
        values = [None] * len(models)
        for tensor in sorted({t for t, _, _ in models}):
            left = [n for n, (t, _, _) in enumerate(models) if t == tensor]
            if isinstance(own[tensor], dict):
                for n, value in zip(left, self.adaptive(len(left), **own[tensor]), strict=True):
                    values[n] = value
                continue
            if isinstance(own[tensor], tuple):
                for n, level in zip(left, self.path([models[n][1:] for n in left], *own[tensor]), strict=True):
                    values[n] = level
                continue
            for first, frequencies in own[tensor]:
                for n, symbol in zip(left, self.symbols([frequencies] * len(left)), strict=True):
                    values[n] = first + symbol if symbol < len(frequencies) - 1 else None
                left = [n for n in left if values[n] is None]
        left = [n for n, value in enumerate(values) if value is None]
        for n, value in zip(left, self.integers([models[n][1:] for n in left]), strict=True):
            values[n] = value
        return values

    def integers(self, exponents):
        """Integers of (family, exponent) pairs; all runs of a chunk."""
        low = [max(0, (e - 49) // 8) for _, e in exponents]
        classes = [8 + 57 * f + min(max(e - 8 * b, 0), 56) for (f, e), b in zip(exponents, low, strict=True)]
        highest = [(len(TABLES[c]) - 2) // 2 for c in classes]
        index = self.run(classes)
        high = [(s + 1) // 2 if s % 2 else -(s // 2) for s in index]
        rest = [0] * len(low)
        for i in range(0, max(low, default=0), 8):
            some = [n for n, b in enumerate(low) if b > i]
            for n, bits in zip(some, self.run([min(low[n] - i, 8) - 1 for n in some]), strict=True):
                rest[n] |= bits << i
        escapes = [n for n, h in enumerate(high) if h > highest[n]]
        counts = [c + 1 for c in self.run([1] * len(escapes))]
        octets = iter(self.run([7] * sum(counts)))
        for n, count in zip(escapes, counts, strict=True):
            extra = sum(next(octets) << (8 * i) for i in range(count))
            magnitude = extra // 2 + highest[n] + 1
            high[n] = -magnitude if extra % 2 else magnitude
        assert set(self.states) == {1 << 16}
        assert not self.words
        return [(h << b) + r - (1 << b >> 1) for h, b, r in zip(high, low, rest, strict=True)]


class Learning:
    """Decisions of an adaptive model; a parameter is its first weight and its name."""

    def __init__(self, stream, columns, taps, width):
        self.stream, self.columns, self.taps, self.width = stream, columns, taps, width
        self.theta, self.weights, self.number = {}, {}, 0

    def decide(self, *parameters):
        place = sum(self.theta.get(each, 0) for each in parameters) // 1024 + 512
        p = ODDS[min(max(place, 0), 1023)]
        answer = 1 - self.stream.symbol(self.number % 8, [p, 4096 - p])
        self.number += 1
        for each in parameters:
            self.weights[each] = self.weights.get(each, each[0]) + max(p * (4096 - p) // 4096, 40)
            self.theta[each] = self.theta.get(each, 0) + (4096 * answer - p) * 65536 // self.weights[each]
        return answer

    def flags(self, name, length, width):
        found = []
        for n in range(length):
            back = found[n - width] if 0 < width <= n else 0
            found.append(self.decide((2**10, name, *[found[n - k] if n >= k else 0 for k in (1, 2, 3)], back)))
        return [n for n in range(length) if found[n]]

    def element(self, line, row, column, last):
        def at(back):
            return line[column - back] if 0 <= column - back < len(line) else 0

        width = self.width
        left, above = at(1), at(width) if width else 0
        near = left, at(2), above, at(width + 1) if width else 0, at(width - 1) if width > 1 else 0
        lines = [("row", row), ("column", column)]
        lines += [("channel", column // self.taps), ("tap", column % self.taps)] if self.taps > 1 else []
        of_zero = [(2**13 if name == "row" else 2**14, "zero", name, n) for name, n in lines]
        if not last and not self.decide((2**10, "zero"), *of_zero, (2**13, "near", *(bool(v) for v in near))):
            return 0
        signs = [(v > 0) - (v < 0) for v in (left, above)]
        negative = self.decide((2**11, "sign", *signs), *[(2**15, "sign", *each) for each in lines])
        sizes, bits = [min(abs(v), 3) for v in (left, above)], 1
        of_size = [(2**15, "size", *each) for each in lines]
        while bits < 31 and self.decide((2**11, "bits", bits), (2**11, "near", *sizes, bits > 1), *of_size):
            bits += 1
        found = 1
        for _ in range(bits - 1):
            found = 2 * found + self.decide(*[(2**10, "node", bits, found)] * (bits <= 8))
        return -found if negative else found


SCALES = {"u": 5, "c": 5, "p": 10, "r": 99}


def own_frequencies(differences):
    roots = list(itertools.accumulate(differences))
    assert 0 <= min(roots) <= max(roots) <= 1023
    left = 4096 - sum(root > 0 for root in roots)
    total, before, out = sum(root**2 for root in roots), 0, []
    for root in roots:
        out.append((root > 0) + left * (before + root**2) // total - left * before // total)
        before += root**2
    assert sum(out) == 4096
    assert max(out) <= 4093
    return out


def octave(index):
    return np.float32(math.ldexp(float(np.float32(2 ** (index % 64 / 64))), index // 64))


def decode(data):
    """All tensors of a file as numpy arrays (bfloat16 as float32), by name."""
    magic, version, minor, packed, size, crc = struct.unpack_from("<8sHHIII", data)
    assert (magic, version) == (b"\x89WFL\r\n\x1a\n", 1)
    assert minor in (0, 1, 2)
    body = data[24 : 24 + packed]
    assert zlib.crc32(data[:20] + body) == crc
    text = zstandard.ZstdDecompressor(dict_data=PHRASES).decompressobj().decompress(body)
    assert len(text) == size
    directory = json.loads(text)
    at, chunks = 24 + packed, {"a": [], "c": [], "s": [], "x": []}
    for kind, length, checksum, count in directory["chunks"]:
        assert zlib.crc32(data[at : at + length]) == checksum
        if count or kind not in "sx":  # what has nothing is not read
            chunks[kind].append((data[at : at + length], count))
        at += length
    assert at == len(data)
    entries = [[*e, None][:5] if len(e) > 3 else [*e, "q", None] for e in directory["entries"]]
    coded = [e for e in entries if e[3] in "qtvm"]
    own_lines = dict(directory.get("tables", []))
    own_lines = [own_lines.get(n, []) for n in range(len(coded))]
    widths = {line[0]: [*line, 0][1] for line in directory.get("adaptive", [])}
    widths = [widths.get(n) for n in range(len(coded))]
    bases = {line[1]: line for line in directory.get("bases", [])}
    assert minor or not bases
    bases = [bases.get(n) for n in range(len(coded))]
    lanes = {tensor: some for tensor, *some in directory.get("lanes", [])}
    assert minor > 1 or not lanes
    lanes = [lanes.get(n) for n in range(len(coded))]
    matrices = decode_matrices(coded, directory["tensors"], own_lines, widths, (bases, lanes), chunks)
    exact = b"".join(zstandard.ZstdDecompressor().decompress(c) for c, _ in chunks["x"])
    return assemble(entries, matrices, exact)


def axes_of(entry):
    _, _, shape, how, groups = entry
    if len(shape) < 2:
        return 1, math.prod(shape), 1
    taps = math.prod(shape[2:])
    return (shape[1] * groups, shape[0] // groups, taps) if how == "t" else (shape[0], shape[1], taps)


def path_of(line, axes, lanes):
    """Logarithm of the states, whether zero is in both subsets, span, which exponent takes part in a path, lanes."""
    down, least = (*line[11:], *(False, -381)[len(line[11:]) :])
    span = max(1, axes[0] if down else 1) << line[4]
    if lanes is not None:
        assert line[4] == 0
        span = max(1, axes[0] if down else axes[1] * axes[2]) * lanes[1]
    return (*line[2:4], span, line[6] + 2 * least, None if lanes is None else lanes[0])


def adaptive_of(entry, width):
    _, channels, taps = axes_of(entry)
    return {"columns": channels * taps, "taps": taps, "width": width}


def kernel_of(entry):
    return entry[2][2:]


def in_values(coded, bases, angles, matrices):
    """The matrices of tensors, some of which are in other bases."""
    for n, (entry, line) in enumerate(zip(coded, bases, strict=True)):
        if line is None:
            continue
        axes, kernel = axes_of(entry), kernel_of(entry)
        if line[0] == "s":
            bases[n], angles[n] = bases[line[2]], angles[line[2]]
            assert len(angles[n]) == slow_bases.number_of_angles(bases[n], axes, kernel)
        flat = matrices[entry[0]].reshape(-1).tolist()
        flat = slow_bases.turned_back(flat, bases[n], angles[n], axes, kernel)
        matrices[entry[0]] = np.array(flat, np.float32).reshape(matrices[entry[0]].shape)
    return matrices


def side_vectors(entry, line, own_lines, basis):
    """Code and length of the scales, own tables and angles of a tensor."""
    codes = line[SCALES[line[0]]] if len(line) > SCALES[line[0]] else [-1] * 6
    found = list(zip([-1] * (6 - len(codes)) + codes, axes_of(entry) * 2, strict=True))
    found += [(code, count + 1) for _, count, code in own_lines]
    if has_angles(basis):
        found.append((basis[-1], slow_bases.number_of_angles(basis, axes_of(entry), kernel_of(entry))))
    return found


def has_angles(basis):
    return basis is not None and basis[0] in "fr"


def decode_matrices(coded, lines, own_lines, widths, beside, chunks):
    places, exponents, (bases, lanes) = [], [], beside
    for each in zip(coded, lines, own_lines, bases, strict=True):
        for code, length in side_vectors(*each):
            stored = length if code not in (-1, -2) else 0
            places.append(stored)
            exponents += [(5, code if code >= 0 else -3 - code)] * stored
    side = iter(take_all(chunks["a"], [(0, *e) for e in exponents], [[]]))
    vectors = iter([[next(side) for _ in range(length)] for length in places])
    parts, own, models, shapes, angles = [], [], [], [], []
    for n in range(len(lines)):
        parts += spreads_from_sums([next(vectors) for _ in range(6)], lines[n])
        own.append([(first, own_frequencies(next(vectors))) for first, _, _ in own_lines[n]])
        angles.append(next(vectors) if has_angles(bases[n]) else [])
        own[n] = path_of(lines[n], axes_of(coded[n]), lanes[n]) if lines[n][0] == "p" else own[n]
        own[n] = own[n] if widths[n] is None else adaptive_of(coded[n], widths[n])
    assert all(-127 <= s <= 127 for part in parts for s in part)
    assert all(-64 <= a <= 64 for some in angles for a in some)
    for n, (entry, line) in enumerate(zip(coded, lines, strict=True)):
        axes = axes_of(entry)
        spreads = axis_sums(parts[6 * n + 3 : 6 * n + 6], axes)
        spreads = [spreads[place] for place in order_of(line, axes)]
        shapes.append(axes)
        if line[0] == "p":
            first, base, second, other = line[5:9]
            models += [(n, (first, second), (base + 2 * s, other + 2 * s)) for s in spreads]
            continue
        family, base = line[{"u": 2, "r": 4, "c": 3}[line[0]] :][:2]
        models += [(n, family, base + 2 * s) for s in spreads]
    books = iter(np.frombuffer(b"".join(c for c, _ in chunks["c"]), "<f4"))
    symbols, at, values = take_all(chunks["s"], models, own), 0, {}
    for n, (entry, line) in enumerate(zip(coded, lines, strict=True)):
        out, channels, taps = shapes[n]
        some = symbols[at : at + out * channels * taps]
        at += len(some)
        steps = axis_sums(parts[6 * n : 6 * n + 3], shapes[n])
        if line[0] == "c":
            book = [next(books) for _ in range(line[1])]
            flat = [book[k - line[2]] for k in some]
        else:
            value = relative if line[0] == "r" else uniform
            flat = [None] * len(some)
            for k, place in zip(some, order_of(line, shapes[n]), strict=True):
                flat[place] = value(k, line, steps[place])
        values[entry[0]] = np.array(flat, np.float32).reshape(out, channels * taps)
    return in_values(coded, bases, angles, values)


def take_all(chunks, models, own):
    values, at = [], 0
    for stream, count in chunks:
        some = models[at : at + count]
        lanes = [own[n][4] or 8 for n in {n for n, _, _ in some} if isinstance(own[n], tuple)]
        values += Stream(stream, max([8, *lanes])).values(some, own)
        at += count
    assert at == len(models)
    return values


def spreads_from_sums(parts, line):
    """The six vectors of scales of a tensor, given what is stored of them."""
    codes = line[SCALES[line[0]]] if line[0] in "up" and len(line) > SCALES[line[0]] else [-1] * 6
    for axis in range(3):
        steps, sums, code = parts[axis], parts[axis + 3], codes[axis + 3]
        if code < -1:
            assert codes[axis] >= 0
            parts[axis + 3] = [a - b for a, b in zip(sums or [0] * len(steps), steps, strict=True)]
    return parts


def order_of(line, axes):
    """Where the symbols of the stream are in the matrix, its rows one after the other."""
    rows, columns = axes[0], axes[1] * axes[2]
    if line[0] == "p" and len(line) > 11 and line[11]:
        return [row * columns + column for column in range(columns) for row in range(rows)]
    return range(rows * columns)


def axis_sums(parts, axes):
    rows, channels, taps = (part or [0] * length for part, length in zip(parts, axes, strict=True))
    return [r + c + t for r in rows for c in channels for t in taps]


def uniform(k, line, scale):
    at = 9 if line[0] == "p" else 4
    shrink, offset = (line[at] if len(line) > at else [0, 0, 0]), (line[6] if line[0] == "u" and len(line) > 6 else 0)
    level = 64 * (k + offset)
    if k:
        level -= (1 if k > 0 else -1) * shrink[min(abs(k), 3) - 1]
    return np.float32(level) * octave(line[1] - 384 + 16 * scale)


def relative(k, line, _):
    _, mantissa, offset, signed, _, _ = line
    sign, k = (k % 2, k // 2) if signed else (0, k)
    pattern = (k + offset) * 2 ** (23 - mantissa)
    pattern = pattern if 0 <= pattern < 0x7F800000 else 0
    return np.array(pattern | sign << 31, np.uint32).view(np.float32)


def assemble(entries, matrices, exact):
    tensors, at = {}, 0
    for name, dtype, shape, how, argument in entries:
        kind = np.dtype("float32" if dtype == "bfloat16" else dtype)
        if how == "x":
            size = math.prod(shape) * (2 if dtype == "bfloat16" else kind.itemsize)
            raw = np.frombuffer(exact[at : at + size], np.uint16 if dtype == "bfloat16" else kind).reshape(shape)
            tensors[name] = (raw.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else raw
            at += size
            continue
        if how == "=":
            tensors[name] = tensors[argument]
            continue
        limit = {"float16": 65504.0, "bfloat16": 3.3895313892515355e38}.get(dtype, float(np.finfo(np.float32).max))
        value = whole(how, argument, shape, matrices.get(name), matrices).clip(-limit, limit).astype(np.float32)
        tensors[name] = to_bfloat16(value) if dtype == "bfloat16" else value.astype(kind)
    return tensors


def whole(how, argument, shape, matrix, matrices):
    if how == "c":
        return np.full(shape, argument)
    if how == "v":
        with np.errstate(divide="ignore"):
            return np.maximum(0, 1 / matrix.astype(np.float64) ** 2 - argument).reshape(shape)
    if how == "m":
        scale = matrices[argument].astype(np.float64)
        safe = np.where(scale == 0, 1, scale)
        return np.where(scale == 0, 0, -matrix.astype(np.float64) / safe).reshape(shape)
    if how == "t":
        return matrix.reshape(argument, shape[1], shape[0] // argument, -1).swapaxes(1, 2).reshape(shape)
    return matrix.reshape(shape)


def to_bfloat16(value):
    bits = value.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16
    return rounded.astype(np.uint32).view(np.float32)
