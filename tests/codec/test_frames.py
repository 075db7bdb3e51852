import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from waterfill.codec.frames import decompressed
from waterfill.errors import FormatError

RANDOM = np.random.default_rng(0).bytes(300_000)
CONTENTS = {"nothing": b"", "a byte": b"a", "zeros": bytes(1 << 18), "random": RANDOM, "text": b"abc " * 99_999}


@pytest.mark.parametrize("contents", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("options", [{}, {"write_checksum": True}, {"write_content_size": False}], ids=str)
def test_a_frame_is_read_and_nothing_behind_it(contents, options):
    frame = zstandard.ZstdCompressor(level=3, **options).compress(contents)
    assert decompressed(frame, len(contents) + 1) == contents
    assert decompressed(memoryview(frame), len(contents) + 1) == contents
    for more in (b"\0", b"more", zstandard.ZstdCompressor().compress(b"")):
        with pytest.raises(FormatError, match="ends after"):
            decompressed(frame + more, len(contents) + 1)
    for size in {0, 1, 5, len(frame) // 2, len(frame) - 1}:
        with pytest.raises(FormatError):
            decompressed(frame[:size], len(contents) + 1)


def test_a_frame_that_holds_more_than_allowed_is_refused():
    for named, words in ((True, "holds more than 1000 bytes"), (False, "cannot be decompressed")):
        frame = zstandard.ZstdCompressor(write_content_size=named).compress(bytes(1 << 20))
        with pytest.raises(FormatError, match=words):
            decompressed(frame, 1000)


@given(st.binary(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_an_error_or_contents(data):
    for some in (data, b"\x28\xb5\x2f\xfd" + data):
        try:
            assert len(decompressed(some, 1000)) <= 1000
        except FormatError:
            continue
