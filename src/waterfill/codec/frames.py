"""Zstandard frames: one, of a known size, with nothing behind it."""

from __future__ import annotations

import zstandard

from waterfill.errors import FormatError

RUN = 1
"""The type of a block that is one byte, repeated."""


def decompressed(data: bytes | memoryview, most: int, dictionary: zstandard.ZstdCompressionDict | None = None) -> bytes:
    """The contents of a frame.

    Args:
        data: the frame.
        most: bytes that it may hold, at most; no more memory than that is taken.
        dictionary: what it is compressed after.

    Raises:
        FormatError: it is no frame, holds more, or has bytes behind it.
    """
    try:
        end = _end(data)
        if end != len(data):
            raise FormatError(f"a frame ends after {end} of its {len(data)} bytes")
        if zstandard.frame_content_size(data) > most:
            raise FormatError(f"a frame holds more than {most} bytes")
        decompressor = zstandard.ZstdDecompressor(dict_data=dictionary, max_window_size=1 << 27)
        return decompressor.decompress(data, max_output_size=most)
    except zstandard.ZstdError as error:
        raise FormatError(f"a frame cannot be decompressed ({error})") from error


def _end(data: bytes | memoryview) -> int:
    """Where a frame ends, by the lengths of its blocks; beyond the data where these are cut.

    Raises:
        zstandard.ZstdError: the data begin with no frame.
    """
    at, last = zstandard.frame_header_size(data), False
    while not last and at < len(data):
        head = int.from_bytes(data[at : at + 3], "little")
        last, kind, size = bool(head & 1), head >> 1 & 3, head >> 3
        at += 3 + (1 if kind == RUN else size)
    return at + 4 * zstandard.get_frame_parameters(data).has_checksum
