"""A decoder written from docs/format.md alone, with its code: plain Python, whole numbers, no code of the package."""

import json
import math
import struct
import zlib

import format_page
import numpy as np
import slow_bases
import zstandard
from format_page import frozen, level_of, own_frequencies, pattern_of, plain_directory

PHRASES = zstandard.ZstdCompressionDict(frozen("phrases.bin"), zstandard.DICT_TYPE_RAWCONTENT)


class Stream(format_page.Stream):
    """A stream with the symbols of several tensors."""

    def path(self, models, *known):
        """Levels of (families, exponents) pairs of a tensor with a trellis."""
        return format_page.read_path(self, models, *known)

    def values(self, models, own):
        """Integers of (tensor, family, exponent) triples, those of own tables first."""
        values = [None] * len(models)
        for tensor in sorted({t for t, _, _ in models}):
            left = [n for n, (t, _, _) in enumerate(models) if t == tensor]
            if isinstance(own[tensor], dict):
                for n, value in zip(left, format_page.read_adaptive(self, len(left), **own[tensor]), strict=True):
                    values[n] = value
                continue
            if isinstance(own[tensor], tuple):
                for n, level in zip(left, self.path([models[n][1:] for n in left], *own[tensor]), strict=True):
                    values[n] = level
                continue
            for first, frequencies in own[tensor]:
                for n, symbol in zip(left, self.run([frequencies] * len(left)), strict=True):
                    values[n] = first + symbol if symbol < len(frequencies) - 1 else None
                left = [n for n in left if values[n] is None]
        left = [n for n, value in enumerate(values) if value is None]
        for n, value in zip(left, format_page.read_integers(self, [models[n][1:] for n in left]), strict=True):
            values[n] = value
        self.finish()
        return values


SCALES = {"u": 5, "c": 5, "p": 10, "r": 99}


def octave(index):
    return np.float32(math.ldexp(float(np.float32(2 ** (index % 64 / 64))), index // 64))


def directory_of(data):
    """The directory of a file, as JSON has it."""
    magic, version, minor, packed, size, crc = struct.unpack_from("<8sHHIII", data)
    assert (magic, version) == (b"\x89WFL\r\n\x1a\n", 1)
    assert minor in (0, 1, 2, 3)
    body = data[24 : 24 + packed]
    assert zlib.crc32(data[:20] + body) == crc
    if size == 0:
        assert minor == 3
        return plain_directory(body)
    text = zstandard.ZstdDecompressor(dict_data=PHRASES).decompressobj().decompress(body)
    assert len(text) == size
    return json.loads(text)


def decode(data):
    """All tensors of a file as numpy arrays (bfloat16 as float32), by name."""
    minor, packed, size = struct.unpack_from("<HII", data, 10)
    directory = directory_of(data)
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
    exact = b"".join(zstandard.ZstdDecompressor().decompress(c) if size else c for c, _ in chunks["x"])
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
    return np.float32(level_of(k, offset, shrink)) * octave(line[1] - 384 + 16 * scale)


def relative(k, line, _):
    _, mantissa, offset, signed, _, _ = line
    return np.array(pattern_of(k, mantissa, offset, signed), np.uint32).view(np.float32)


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
