"""A `.wf` file and a safetensors file in parts, and together again with the lengths and checksums that suit them."""

import json
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import slow_decoder
import zstandard

HEADER = struct.Struct("<8sHHIII")
MAGIC = b"\x89WFL\r\n\x1a\n"
QUICK = zstandard.ZstdCompressionParameters.from_level(1, write_content_size=False)
PHRASES = slow_decoder.PHRASES
PHRASES.precompute_compress(compression_params=QUICK)


@dataclass
class Parts:
    """The directory as JSON has it, the bytes of the chunks, and the minor version."""

    directory: Any
    chunks: list[bytes]
    minor: int = 0


def take_apart(data):
    _, _, minor, packed, _, _ = HEADER.unpack_from(data)
    text = zstandard.ZstdDecompressor(dict_data=PHRASES).decompressobj().decompress(data[24 : 24 + packed])
    directory, at, chunks = json.loads(text), 24 + packed, []
    for _, size, _, _ in directory["chunks"]:
        chunks.append(data[at : at + size])
        at += size
    return Parts(directory, chunks, minor)


def put_together(parts):
    """The file; lines of chunks that still are lines get the sizes and checksums of what they have."""
    lines = parts.directory.get("chunks") if isinstance(parts.directory, dict) else None
    for line, chunk in zip(lines if isinstance(lines, list) else [], parts.chunks, strict=False):
        if isinstance(line, list) and len(line) == 4:
            line[1:3] = len(chunk), zlib.crc32(chunk)
    text = json.dumps(parts.directory, separators=(",", ":"), ensure_ascii=False)
    return with_text(text.encode("utf-8", "surrogatepass"), parts.chunks, parts.minor)


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
