"""The kept inputs of the fuzzer: `corpus.py seeds FOLDER`, `pack FOLDER`, `unpack FOLDER`, `stream`."""

import hashlib
import json
import lzma
import struct
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
KEPT = HERE / "corpus.xz"
HEAD = struct.Struct("<BBBBHH")
MOST_OF_LANES = 2000
"""Bytes of the files with lanes that are seeds."""
PARTS, FILE, SHARD, FRAME, PLAIN = range(5)


def head(kind, minor=0, reads=0, dtype=0, failing=0, limit=0):
    """What to do with an input; see fuzz.c."""
    return HEAD.pack(kind, minor, reads, dtype, failing, limit)


def in_parts(data, **options):
    """A file with its directory unpacked."""
    from fuzz.anatomy import take_apart

    parts = take_apart(data)
    text = json.dumps(parts.directory, separators=(",", ":"), ensure_ascii=False).encode()
    return head(PARTS, parts.minor, **options) + struct.pack("<I", len(text)) + text + b"".join(parts.chunks)


def plain_in_parts(data, **options):
    """A plain file without its header."""
    _, minor, size = struct.unpack_from("<HHI", data, 8)
    return head(PLAIN, minor, **options) + struct.pack("<I", size) + data[24:]


def seeds():
    """Inputs from the golden files and the seeds of the other fuzzer."""
    import zstandard

    from decoders.test_lanes import files
    from fuzz import seeds as known
    from fuzz.anatomy import made_plain, take_apart

    small = [data for _, data in files() if len(data) < MOST_OF_LANES]
    for number, data in enumerate([*known.files().values(), *small]):
        plain = data if take_apart(data).is_plain else made_plain(data)
        yield plain_in_parts(plain, dtype=number % 4)
        yield plain_in_parts(plain, reads=1, dtype=(number + 1) % 4)
        yield plain_in_parts(plain, failing=3 + number)
        yield in_parts(data, dtype=number % 4)
        yield in_parts(data, reads=1, dtype=(number + 1) % 4)
        yield in_parts(data, failing=3 + number)
        yield head(FILE) + data
        for level in (1, 19):
            frame = zstandard.ZstdCompressor(level=level, write_content_size=True).compress(data)
            yield head(FRAME, 1) + struct.pack("<I", len(data)) + frame
    for shard in sorted((HERE.parents[1] / "golden").rglob("*.safetensors")):
        yield head(SHARD) + shard.read_bytes()
        yield head(SHARD, reads=1) + shard.read_bytes()


def kept():
    """All inputs that are kept."""
    data, at, found = lzma.decompress(KEPT.read_bytes()), 0, []
    while at < len(data):
        size = struct.unpack_from("<I", data, at)[0]
        found.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return found


def write(inputs, folder):
    """Write inputs as files, under the names that the fuzzer has for them."""
    folder.mkdir(parents=True, exist_ok=True)
    for data in inputs:
        (folder / hashlib.sha1(data).hexdigest()).write_bytes(data)


def stream(inputs):
    """Inputs as replay.c reads them."""
    return b"".join(struct.pack("<I", len(data)) + data for data in inputs)


def main(action, folder=None):
    """Run a command."""
    if action == "seeds":
        write(seeds(), Path(folder))
    elif action == "unpack":
        write(kept(), Path(folder))
    elif action == "pack":
        inputs = {path.read_bytes() for path in Path(folder).iterdir()}
        KEPT.write_bytes(lzma.compress(stream(sorted(inputs, key=lambda each: (each[:20], each[-20:])))))
    elif action == "stream":
        sys.stdout.buffer.write(stream(kept()))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:])
