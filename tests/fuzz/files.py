"""Changes of `.wf` files, by their kind: each takes a source of random numbers and all seeds, and returns a file."""

import copy
import struct

import numpy as np
import zstandard

from fuzz import values
from fuzz.anatomy import HEADER, MAGIC, put_together, take_apart, with_header, with_packed, with_text
from waterfill.codec import basis_lines, container, pieces
from waterfill.codec.lanes import in_order
from waterfill.codec.lines import FlipsLine, RotationsLine
from waterfill.errors import FormatError
from waterfill.files import WaterfillFile

LINES = {"f": FlipsLine, "r": RotationsLine}
DTYPES = ("float32", "float16", "bfloat16", "float64", "int64", "bool", "uint8")
RANGES = {
    "u": ((-6000, 6000), (0, 6), (-400, 256), None, None, (-(1 << 30), 1 << 30)),
    "r": ((0, 23), (-(1 << 31), 1 << 31), (0, 1), (0, 6), (-400, 256)),
    "c": ((1, 40), (-40, 0), (0, 6), (-400, 256), None),
    "p": (
        (-6000, 6000), (2, 12), (0, 1), (0, 42), (0, 6), (-400, 256), (0, 6), (-400, 256), None, None, (0, 1), (-9, 9),
    ),
}  # fmt: skip
"""Of the fields of the lines of tensors."""


def any_bytes(random, data):
    """Bytes anywhere; checksums as they were."""
    return values.change_bytes(random, data)


def header(random, data):
    """A field of the header."""
    fields = list(HEADER.unpack_from(data)[:5])
    which = random.randrange(1, 5)
    limit = (1 << 16) - 1 if which < 3 else (1 << 32) - 1
    fields[which] = min(max(int(values.number(random, fields[which])), 0), limit)
    return with_header(fields, data[24:], HEADER.unpack_from(data)[3])


def packed_directory(random, data):
    """Bytes of the compressed directory."""
    _, _, minor, size, text_size, _ = HEADER.unpack_from(data)
    return with_packed(values.change_bytes(random, data[24 : 24 + size]), text_size, [data[24 + size :]], minor)


def directory_text(random, data):
    """Bytes of the text of the directory."""
    parts = take_apart(data)
    if parts.is_plain:
        return packed_directory(random, data)
    return with_text(values.change_bytes(random, values.json_text(parts.directory)), parts.chunks, parts.minor)


def directory_value(random, data):
    """A value in the directory."""
    return _edited(random, data, values.change_value)


def directory_structure(random, data):
    """Members of lists and objects in the directory."""
    return _edited(random, data, values.change_structure)


def directory_several(random, data):
    """Several values and members at once."""

    def change(random, tree):
        for _ in range(random.randrange(2, 6)):
            random.choice((values.change_value, values.change_structure))(random, tree)

    return _edited(random, data, change)


def entry(random, data):
    """Type, shape or origin of a tensor, as it may be."""

    def change(random, directory):
        line = random.choice(directory["entries"])
        how = random.randrange(5)
        if how == 0:
            line[1] = random.choice(DTYPES)
        elif how == 1:
            line[2] = _other_shape(random, line[2])
        elif how == 2 and len(line[2]) >= 2:
            line[3:] = ["t", random.choice((1, 2, 3, line[2][0]))]
        elif how == 3:
            line[3:] = random.choice((["c", random.choice(values.NUMBERS)], ["v", 10.0 ** random.randrange(-9, 3)], []))
        else:
            line[3:] = [random.choice("=mx"), random.choice(directory["entries"])[0]]

    return _edited(random, data, change)


def _other_shape(random, shape):
    """As many values along other axes."""
    shape = list(shape)
    random.shuffle(shape)
    how = random.randrange(4)
    if how == 0:
        shape.insert(random.randrange(len(shape) + 1), 1)
    elif how == 1 and len(shape) > 1:
        shape[:2] = [shape[0] * shape[1]]
    elif how == 2:
        shape.insert(0, 0)
    return shape


def rule(random, data):
    """A field of the line of a tensor, as it may be."""

    def change(random, directory):
        line = random.choice(directory["tensors"])
        number = random.randrange(1, len(line)) if len(line) > 1 else 0
        bounds = RANGES[line[0]][number - 1] if number and number <= len(RANGES[line[0]]) else None
        if bounds is not None:
            new = random.choice((bounds[0], bounds[1], random.randint(*bounds), line[number] + random.randint(-3, 3)))
            line[number] = bool(new) if isinstance(line[number], bool) else new
        elif number:
            each = random.randrange(len(line[number]))
            line[number][each] += random.randint(-9, 9)

    return _edited(random, data, change)


def models(random, data):
    """Own tables and adaptive models."""

    def change(random, directory):
        key = random.choice(("tables", "adaptive"))
        lines, count = directory.setdefault(key, []), len(directory["tensors"])
        how = random.randrange(3)
        if lines and how == 0:
            values.change_value(random, lines)
        elif lines and how == 1:
            lines.pop(random.randrange(len(lines)))
        else:
            number = random.randrange(count + 1)
            tables = [[random.randint(-4, 0), random.randint(1, 9), random.randint(0, 120)] for _ in range(2)]
            lines.append([number, tables if key == "tables" else random.randrange(9)])
            lines.sort(key=str)

    return _edited(random, data, change)


def lanes(random, data):
    """Lanes of paths."""
    parts = take_apart(data)
    lines = {line[0]: line for line in parts.directory.get("lanes", [])}
    paths = [n for n, line in enumerate(parts.directory["tensors"]) if line[0] == "p"]
    number = random.choice(paths or [0])
    if number in lines and random.random() < 0.2:
        del lines[number]
    else:
        count, most = random.choice((8, 8, 32, 32, 16)), random.choice((1, 2, 3, 9, 1 << 42))
        lines[number] = [number, count, random.randint(1, most)]
        if paths and random.random() < 0.9:
            parts.directory["tensors"][number][4] = 0
    parts.directory["lanes"] = [lines[each] for each in sorted(lines)]
    parts.minor = random.choice((2, 2, 2, 2, 2, 2, 2, 1))
    if random.random() < 0.2:
        values.change_value(random, parts.directory["lanes"])
    return put_together(parts)


def bases(random, data):
    """Lines of bases, with as many angles as they need."""
    parts = take_apart(data)
    lines = {line[1]: line for line in parts.directory.get("bases", [])}
    with WaterfillFile(data, threads=1) as file:
        vectors = _side_vectors(file.container)
        number = random.choice([*lines, random.randrange(len(vectors))])
        vectors[number] = vectors[number][: len(vectors[number]) - (lines.pop(number, "?")[0] in "fr")]
        line = _line_of_basis(random, number, list(file.container.layouts.values())[number])
        if line is not None:
            lines[number] = line[:-1] if line[0] in "fr" else line
            vectors[number] += [line[-1]] if line[0] in "fr" else []
    parts.directory["bases"] = [lines[each] for each in sorted(lines)]
    parts.minor = max(parts.minor, random.choice((1, 1, 1, 1, 1, 1, 1, 0)))
    if random.random() < 0.2:
        values.change_value(random, parts.directory["bases"])
    return _with_side(parts, vectors)


def _line_of_basis(random, number, layout):
    """A line, after `f` and `r` with the code and the angles; None for none."""
    kind = random.choice("ccffrrs-")
    if kind == "c":
        return ["c", number, random.randrange(3), random.choice((2, 3, 5, 7, 8, 12, 16, 100, 512))]
    if kind == "s":
        return ["s", number, random.randrange(number + 1)]
    if kind == "-":
        return None
    axis, code = random.randrange(2), random.choice((0, 30, 60, 80, 120))
    middle = [] if kind == "f" else [axis, random.choice((1, 1, 2, 3, max(1, layout.axes[axis] - 1), 1023))]
    try:
        (count,) = basis_lines.numbers_of_angles(LINES[kind](number, *middle, code), layout)
    except FormatError:
        count = 1
    angles = np.array([random.randint(-64, 64) for _ in range(min(count, 5000))], np.int32)
    return [kind, number, *middle, code, ("", angles, code)]


def side_values(random, data):
    """Scales, own tables and angles, coded again."""
    parts = take_apart(data)
    with WaterfillFile(data, threads=1) as file:
        vectors = _side_vectors(file.container)
    vector = random.choice([each for some in vectors for _, each, _ in some if each.size])
    for _ in range(random.choice((1, 1, 5))):
        vector[random.randrange(vector.size)] = random.choice(
            (0, 64, -64, 65, -65, 127, 128, -300, 1 << 20, -(1 << 29))
        )
    return _with_side(parts, vectors)


def _side_vectors(opened):
    """Scales, own tables and angles of every tensor: name, integers, exponent."""
    found = {name: [] for name in opened.layouts}
    for name, vector, code in opened._side_vectors():
        found[name].append((name, vector.copy(), code))
    return list(found.values())


def _with_side(parts, vectors):
    """A file with other scales, own tables and angles, in one chunk."""
    lines = parts.directory["chunks"]
    kept = [n for n, line in enumerate(lines) if line[0] != "a"]
    lines[:], parts.chunks = [lines[n] for n in kept], [parts.chunks[n] for n in kept]
    some = [each for of_one in vectors for each in of_one]
    if some:
        stream, count = container._side_chunk(some)
        lines.insert(0, ["a", len(stream), 0, count])
        parts.chunks.insert(0, stream)
    return put_together(parts)


def side_stream(random, data):
    """Bytes of scales, own tables and angles."""
    return _with_chunk(random, data, "a", values.change_bytes)


def codebook(random, data):
    """Values of codebooks."""

    def change(random, chunk):
        book = np.frombuffer(chunk, "<f4").copy()
        odd = (0.0, -0.0, np.inf, np.nan, 3.4e38, 1e-45, -1.0, random.uniform(-9, 9))
        book[random.randrange(book.size)] = random.choice(odd)
        return book.tobytes()

    return _with_chunk(random, data, "c", change)


def symbol_stream(random, data):
    """Bytes of streams of symbols."""
    return _with_chunk(random, data, "s", values.change_bytes)


def exact_frame(random, data):
    """Bytes of compressed exact tensors."""
    return _with_chunk(random, data, "x", values.change_bytes)


def exact_values(random, data):
    """Values of exact tensors, and how they are compressed."""

    def change(random, chunk):
        raw = zstandard.ZstdDecompressor().decompress(chunk)
        raw = random.choice((values.change_bytes(random, raw), random.randbytes(len(raw)), bytes(len(raw))))
        raw = raw[: random.choice((len(raw), len(raw), 1))]
        options = {"write_content_size": random.random() < 0.7, "write_checksum": random.random() < 0.2}
        frame = zstandard.ZstdCompressor(level=1, **options).compress(raw)
        return frame + random.choice((b"", b"", b"", b"\0", frame, zstandard.ZstdCompressor().compress(bytes(1 << 20))))

    return _with_chunk(random, data, "x", change)


def symbols(random, data):
    """Symbols of tensors without trellis, coded again."""
    with WaterfillFile(data, threads=1) as file:
        opened, parts = file.container, take_apart(data)
        index, found = random.choice(list(opened.symbol_spans.items()))
        coders = [pieces.model(opened.rules[name][1], opened.layouts[name], a, b) for name, a, b in found]
        coded = [in_order(part).copy() for part in opened.symbols(index, found)]
        free = [n for n, (name, _, _) in enumerate(found) if opened.rules[name][1].trellis is None]
    for number in random.sample(free, min(len(free), random.choice((1, 2, 9)))):
        part = coded[number]
        some = np.array([random.randrange(part.size) for _ in range(random.choice((1, 3, part.size)))])
        most = 1 << random.choice((1, 2, 5, 9, 16, 24, 30))
        part[some] = np.array([random.randrange(-most, most) for _ in some])
    parts.chunks[index] = pieces.encode(coded, coders)
    return put_together(parts)


def chunks(random, data):
    """Chunks left out, doubled, moved, joined, cut or empty."""
    parts = take_apart(data)
    lines, streams = parts.directory["chunks"], parts.chunks
    at, how = random.randrange(len(lines)), random.randrange(6)
    if how == 0:
        del lines[at], streams[at]
    elif how == 1:
        lines.insert(at, list(lines[at]))
        streams.insert(at, streams[at])
    elif how == 2:
        lines[at][3] = max(0, lines[at][3] + random.choice((1, -1, 4, -lines[at][3])))
    elif how == 3:
        for _ in range(random.choice((1, 1, 9, 9, 9, 300))):
            lines.insert(at, [lines[at][0], 0, 0, 0])
            streams.insert(at, random.choice((b"", b"", struct.pack("<8I", *[1 << 16] * 8))))
    elif how == 4:
        cut = random.randrange(len(streams[at]) + 1)
        first = random.randrange(lines[at][3] + 1)
        lines.insert(at + 1, [lines[at][0], 0, 0, lines[at][3] - first])
        lines[at][3] = first
        streams[at : at + 1] = [streams[at][:cut], streams[at][cut:]]
    else:
        random.shuffle(lines)
    return put_together(parts)


def mixture(random, data, another):
    """Parts of two files."""
    parts, more = take_apart(data), take_apart(another)
    for key in random.sample(list(more.directory), random.choice((1, 1, 2))):
        parts.directory[key] = copy.deepcopy(more.directory[key])
        parts.minor = max(parts.minor, more.minor)
    if random.random() < 0.5:
        at = random.randrange(len(parts.chunks))
        parts.chunks[at] = random.choice(more.chunks)
    return put_together(parts)


def _edited(random, data, change):
    parts = take_apart(data)
    change(random, parts.directory)
    return put_together(parts)


def _with_chunk(random, data, kind, change):
    """A file with one chunk of a kind changed."""
    parts = take_apart(data)
    at = random.choice([n for n, line in enumerate(parts.directory["chunks"]) if line[0] == kind])
    parts.chunks[at] = change(random, parts.chunks[at])
    return put_together(parts)


def zip_like(random, data):
    """Something else than a `.wf` file."""
    start = random.choice((b"", b"PK\x03\x04", MAGIC, MAGIC[:5], b"\x80\x04", b"{}"))
    return start + random.randbytes(random.choice((0, 3, 16, 200))) + data[: random.choice((0, 9, 24, 30))]


KINDS = {
    function.__name__: function
    for function in (
        any_bytes, header, packed_directory, directory_text, directory_value, directory_structure, directory_several,
        entry, rule, models, lanes, bases, side_values, side_stream,
        codebook, symbol_stream, exact_frame, exact_values, symbols, chunks, zip_like,
    )
}  # fmt: skip


NEEDED = {"side_values": "a", "side_stream": "a", "exact_frame": "x", "exact_values": "x", "codebook": "c"}
"""Kinds of chunks that not all seeds have, by the kinds of changes that need them."""


def suits(kind, data):
    """Whether a file has what a kind of change needs."""
    if kind not in NEEDED:
        return True
    parts = take_apart(data)
    has_frames = not (parts.is_plain and NEEDED[kind] == "x")
    return has_frames and any(line[0] == NEEDED[kind] for line in parts.directory["chunks"])


def changed(kind, random, data, others):
    """A file that is changed in one of the ways of `KINDS`, or a mixture with one of others."""
    return mixture(random, data, random.choice(others)) if kind == "mixture" else KINDS[kind](random, data)
