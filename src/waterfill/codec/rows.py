"""Directories as plain bytes: lists of similar lines as rows of a few templates (docs/format.md, *Plain files*)."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from waterfill.errors import FormatError

Value: TypeAlias = Any
"""What JSON has, but objects; while it is written, tuples for lists, and the bytes of a float64 for a real number."""

NULL, FALSE, TRUE, REAL, WHOLE, TEXT, LIST, ROWS, WHOLE_HOLE, TEXT_HOLE = range(10)
"""What a value begins with; the last two are in templates alone."""

MOST_TEMPLATES = 64
VALUES, VALUES_PER_BYTE, MOST_VALUES = 1 << 16, 32, 1 << 26
"""A directory has at most so many values, and so many for each of its bytes: the longest line that takes one has 23."""

MOST_DEPTH = 4
LARGEST, MOST_NUMBER = (1 << 63) - 1, (1 << 64) - 1
REAL_BYTES = struct.Struct("<d")


# Writing


@dataclass(eq=False)
class _Writer:
    """What values refer to.

    Attributes:
        texts: their numbers.
        held: the last text of a hole.
        room: bytes of all texts of holes.
    """

    texts: dict[str, int] = field(default_factory=dict)
    held: bytes = b""
    room: int = 0

    def number(self, text: str) -> bytes:
        return _varint(self.texts.setdefault(text, len(self.texts)))

    def value(self, value: Value) -> bytes:
        """Any value but a list of rows."""
        match value:
            case None:
                return bytes([NULL])
            case bool():
                return bytes([TRUE if value else FALSE])
            case int():
                return bytes([WHOLE]) + _signed(value)
            case bytes():
                return bytes([REAL]) + value
            case str():
                return bytes([TEXT]) + self.number(value)
        return bytes([LIST]) + _varint(len(value)) + b"".join(map(self.value, value))

    def member(self, value: Value) -> bytes:
        """A member of the directory: rows where it is a list of lists."""
        value = _with_packed_reals(value)
        if isinstance(value, tuple) and value and all(isinstance(line, tuple) for line in value):
            return self.rows(value)
        return self.value(value)

    def rows(self, lines: Sequence[Value]) -> bytes:
        """Lines of a few kinds: what all lines of a kind have is written once, in their template."""
        flat = [list(_leaves(line)) for line in lines]
        kinds = _kinds(lines, flat)
        groups: dict[tuple[object, ...], list[int]] = {}
        for n, kind in enumerate(kinds):
            groups.setdefault(kind, []).append(n)
        if len(groups) > MOST_TEMPLATES:
            return self.value(lines)
        columns = {kind: list(zip(*(flat[n] for n in members), strict=True)) for kind, members in groups.items()}
        templates = [self._template(lines[members[0]], iter(columns[kind])) for kind, members in groups.items()]
        numbers = {kind: n for n, kind in enumerate(groups)}
        found = [bytes([ROWS]), _varint(len(templates)), *(_varint(len(each)) + each for each in templates)]
        found.append(_varint(len(lines)))
        for kind, line in zip(kinds, flat, strict=True):
            found.append(_varint(numbers[kind]))
            found += [self._hole(leaf, column) for leaf, column in zip(line, columns[kind], strict=True)]
        return b"".join(found)

    def _template(self, line: Value, columns: Iterator[tuple[Value, ...]]) -> bytes:
        """The template of lines like this one, of whose leaves the columns have all values."""
        if isinstance(line, tuple):
            return bytes([LIST]) + _varint(len(line)) + b"".join(self._template(each, columns) for each in line)
        column = next(columns)
        if not _varies(column):
            return self.value(line)
        return bytes([TEXT_HOLE]) if isinstance(line, str) else bytes([WHOLE_HOLE]) + _signed(min(column))

    def _hole(self, leaf: Value, column: tuple[Value, ...]) -> bytes:
        """What a row has for a leaf: nothing where all rows of the template have the same."""
        if not _varies(column):
            return b""
        if not isinstance(leaf, str):
            return _varint(leaf - min(column))
        text = leaf.encode()
        shared = _shared(self.held, text)
        self.held, self.room = text, self.room + len(text)
        return _varint(shared) + self.number(text[shared:].decode())


def pack(members: Mapping[str, Value]) -> bytes:
    """A directory, as JSON has it, as plain bytes."""
    writer = _Writer()
    found = [writer.number(key) + writer.member(value) for key, value in members.items()]
    texts = [text.encode() for text in writer.texts]
    parts = [_varint(len(texts)), *(_varint(len(text)) + text for text in texts)]
    return b"".join([*parts, _varint(writer.room), _varint(len(found)), *found])


def _with_packed_reals(value: Value) -> Value:
    """A value with tuples as lists, and with the bytes of real numbers: 0.0 and -0.0 are equal, their bytes are not."""
    if isinstance(value, list | tuple):
        return tuple(map(_with_packed_reals, value))
    return REAL_BYTES.pack(value) if isinstance(value, float) else value


def _leaves(value: Value) -> Iterator[Value]:
    """All of a line but the lists, in order."""
    if isinstance(value, tuple):
        for each in value:
            yield from _leaves(each)
    else:
        yield value


def _form(value: Value) -> object:
    """What lines of one template have in common: lists of the same lengths, leaves of the same types."""
    return tuple(map(_form, value)) if isinstance(value, tuple) else type(value)


def _kinds(lines: Sequence[Value], flat: Sequence[Sequence[Value]]) -> list[tuple[object, ...]]:
    """What makes lines alike: their form, and the values that no hole can have or that many of this form share."""
    forms = [_form(line) for line in lines]
    counts = Counter(forms)
    values = Counter((form, n, leaf) for form, line in zip(forms, flat, strict=True) for n, leaf in enumerate(line))
    distinct = Counter((form, n) for form, n, _ in values)

    def is_shared(form: object, n: int, leaf: Value) -> bool:
        is_whole = isinstance(leaf, int) and not isinstance(leaf, bool)
        return not is_whole and (not isinstance(leaf, str) or 2 * distinct[form, n] <= counts[form])

    return [
        (form, *((n, leaf) for n, leaf in enumerate(line) if is_shared(form, n, leaf)))
        for form, line in zip(forms, flat, strict=True)
    ]


def _shared(one: bytes, other: bytes) -> int:
    """How many bytes two texts begin with alike, up to the end of a character."""
    pairs = zip(one, other, strict=False)
    count = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
    while 0 < count < len(other) and other[count] & 0xC0 == 0x80:
        count -= 1
    return count


def _varies(column: tuple[Value, ...]) -> bool:
    return any(each != column[0] for each in column)


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    found.append(number)
    return bytes(found)


def _signed(number: int) -> bytes:
    return _varint(2 * number if number >= 0 else -2 * number - 1)


# Reading


@dataclass(eq=False)
class _Cursor:
    """A place in bytes, which moves on with what is read there.

    Attributes:
        data: the bytes.
        at: the next one.
    """

    data: bytes
    at: int = 0

    def take(self, size: int) -> bytes:
        """The next bytes."""
        found = self.data[self.at : self.at + size]
        if len(found) != size:
            raise FormatError("the directory is cut")
        self.at += size
        return found

    def number(self) -> int:
        """The next whole number, from 0 to 2^64 - 1."""
        found = 0
        for shift in range(0, 64, 7):
            byte = self.take(1)[0]
            found |= (byte & 127) << shift
            if byte < 128:
                break
        if byte > 127 or (byte == 0 and shift) or found > MOST_NUMBER:
            raise FormatError("the directory has a number that is too large, or longer than it has to be")
        return found

    def signed(self) -> int:
        """The next whole number, which may be negative."""
        number = self.number()
        return -(number + 1 >> 1) if number & 1 else number >> 1

    def count(self) -> int:
        """How many things follow, of at least a byte each."""
        number = self.number()
        if number > len(self.data) - self.at:
            raise FormatError("the directory is cut")
        return number

    def part(self) -> bytes:
        """The next bytes, as many as the number before them says."""
        return self.take(self.count())


@dataclass(eq=False)
class _Reader:
    """What values refer to, and how much of everything may still come.

    Attributes:
        texts: by their numbers.
        room: bytes of all texts that are still to be joined.
        left: values that may still come.
        held: the last text that was joined.
    """

    texts: list[str]
    room: int
    left: int
    held: bytes = b""

    def value(self, at: _Cursor, row: _Cursor | None = None, depth: int = 0) -> Value:
        """The value at a place.

        Args:
            at: in the directory, or in a template.
            row: where what holes have is, in a template.
            depth: how many lists it is in.
        """
        self.left -= 1
        if self.left < 0:
            raise FormatError("the directory has more values than its bytes may stand for")
        kind = at.take(1)[0]
        if kind <= TRUE:
            return (None, False, True)[kind]
        if kind == REAL:
            return float(REAL_BYTES.unpack(at.take(8))[0])
        if kind == WHOLE:
            return at.signed()
        if kind == TEXT:
            return self.text(at)
        if kind == LIST and depth < MOST_DEPTH:
            return [self.value(at, row, depth + 1) for _ in range(at.count())]
        if kind == ROWS and row is None and depth == 0:
            return self.rows(at)
        if kind == WHOLE_HOLE and row is not None:
            return _in_range(at.signed() + row.number())
        if kind == TEXT_HOLE and row is not None:
            return self.joined(row)
        raise FormatError(f"the directory has a value of the kind {kind} where there can be none")

    def text(self, at: _Cursor) -> str:
        """The text whose number is at a place."""
        number = at.number()
        if number >= len(self.texts):
            raise FormatError(f"the directory has no text {number}")
        return self.texts[number]

    def joined(self, row: _Cursor) -> str:
        """The text of a hole: the first bytes of the last one, and one of the texts."""
        shared, rest = row.number(), self.text(row).encode()
        if shared > len(self.held):
            raise FormatError(f"a text of the directory has the first {shared} bytes of one of {len(self.held)}")
        self.room -= shared + len(rest)
        if self.room < 0:
            raise FormatError("the directory has longer texts than it says")
        self.held = self.held[:shared] + rest
        return self.held.decode()

    def rows(self, at: _Cursor) -> list[Value]:
        """Lines of a few kinds."""
        templates = [at.part() for _ in range(at.count())]
        if len(templates) > MOST_TEMPLATES:
            raise FormatError(
                f"a list of the directory has {len(templates)} templates; at most {MOST_TEMPLATES} may be"
            )
        return [self.row(templates, at) for _ in range(at.count())]

    def row(self, templates: list[bytes], at: _Cursor) -> Value:
        """The next line."""
        number = at.number()
        if number >= len(templates):
            raise FormatError(f"the directory has no template {number}")
        template = _Cursor(templates[number])
        line = self.value(template, at)
        if template.at != len(template.data):
            raise FormatError("a template of the directory has more than one value")
        return line


def unpack(data: bytes, most: int) -> dict[str, Value]:
    """Undo `pack`.

    Args:
        data: the directory.
        most: bytes that its joined texts may have.

    Raises:
        FormatError: the bytes are not what `pack` makes.
    """
    at = _Cursor(data)
    found: dict[str, Value] = {}
    try:
        texts, room = [at.part().decode() for _ in range(at.count())], at.number()
        reader = _Reader(texts, room, min(MOST_VALUES, VALUES + VALUES_PER_BYTE * len(data)))
        if room > most:
            raise FormatError(f"the directory has texts of {room} bytes, more than the {most} that it may have")
        for _ in range(at.count()):
            key = reader.text(at)
            if key in found:
                raise FormatError(f"the directory has {key!r} twice")
            found[key] = reader.value(at)
    except UnicodeDecodeError as error:
        raise FormatError(f"a text of the directory is not UTF-8 ({error})") from error
    if at.at != len(data) or reader.room:
        raise FormatError("the directory does not end where it should, or has shorter texts than it says")
    return found


def _in_range(number: int) -> int:
    if number > LARGEST:
        raise FormatError("the directory has a number that is too large")
    return number
