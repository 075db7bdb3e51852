"""A `.wf` file and a safetensors file in parts, and together again with the lengths and checksums that suit them."""

import json
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import slow_decoder
import zstandard

from waterfill.codec import rows

HEADER = struct.Struct("<8sHHIII")
MAGIC = b"\x89WFL\r\n\x1a\n"
QUICK = zstandard.ZstdCompressionParameters.from_level(1, write_content_size=False)
PHRASES = slow_decoder.PHRASES
PHRASES.precompute_compress(compression_params=QUICK)


@dataclass
class Parts:
    """The directory as JSON has it, the bytes of the chunks, the minor version, and whether the file is plain."""

    directory: Any
    chunks: list[bytes]
    minor: int = 0
    is_plain: bool = False


def take_apart(data):
    _, _, minor, packed, size, _ = HEADER.unpack_from(data)
    directory, at, chunks = directory_of(data[24 : 24 + packed], is_plain=size == 0), 24 + packed, []
    for _, length, _, _ in directory["chunks"]:
        chunks.append(data[at : at + length])
        at += length
    return Parts(directory, chunks, minor, size == 0)


def directory_of(packed, *, is_plain):
    """A directory as JSON has it."""
    if is_plain:
        return rows.unpack(packed, 1 << 26)
    return json.loads(zstandard.ZstdDecompressor(dict_data=PHRASES).decompressobj().decompress(packed))


def put_together(parts):
    """The file; lines of chunks that still are lines get the sizes and checksums of what they have."""
    lines = parts.directory.get("chunks") if isinstance(parts.directory, dict) else None
    for line, chunk in zip(lines if isinstance(lines, list) else [], parts.chunks, strict=False):
        if isinstance(line, list) and len(line) == 4:
            line[1:3] = len(chunk), zlib.crc32(chunk)
    if parts.is_plain:
        return with_packed(plain_bytes(parts.directory), 0, parts.chunks, parts.minor)
    text = json.dumps(parts.directory, separators=(",", ":"), ensure_ascii=False)
    return with_text(text.encode("utf-8", "surrogatepass"), parts.chunks, parts.minor)


def plain_bytes(directory):
    """A directory as plain bytes; the beginning of them where it has what these cannot say."""
    try:
        return rows.pack(directory)
    except (AttributeError, TypeError, ValueError, RecursionError):
        return b"\0\0"


def made_plain(data):
    """The same file without zstandard."""
    parts = take_apart(data)
    lines = parts.directory["chunks"]
    for n, line in enumerate(lines):
        if line[0] == "x":
            parts.chunks[n] = zstandard.ZstdDecompressor().decompress(parts.chunks[n])
    kept = [n for n, chunk in enumerate(parts.chunks) if chunk]
    parts.directory["chunks"] = [lines[n] for n in kept]
    return put_together(Parts(parts.directory, [parts.chunks[n] for n in kept], 3, True))


def with_text(text, chunks, minor=0):
    """A file whose directory is any text."""
    packed = zstandard.ZstdCompressor(dict_data=PHRASES, compression_params=QUICK).compress(text)
    return with_packed(packed, len(text), chunks, minor)


def with_packed(packed, size, chunks, minor=0):
    """A file whose directory is any bytes that are said to decompress to so many."""
    return with_header((MAGIC, 1, minor, len(packed), size), packed + b"".join(chunks), len(packed))


def with_header(fields, body, checked):
    """A file with any header, whose checksum is of that and of so many bytes of the body."""
    head = HEADER.pack(*fields, 0)[:-4]
    return head + struct.pack("<I", zlib.crc32(head + body[:checked])) + body


def shard_apart(data):
    """Header and values of a safetensors file."""
    (length,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def shard_together(header, values):
    text = json.dumps(header, separators=(",", ":")).encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + values
