"""The reader in C as a process that answers: files and frames to tensors and bytes, or to an error."""

import struct
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "decoders" / "c"
DRIVER = Path(__file__).with_name("driver.c")
STRICT = ["-std=c99", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-pedantic"]
SANITIZED = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
DTYPES = (
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
    "float8_e8m0fnu", "complex32", "complex64", "complex128", "int8", "int16", "int32", "int64", "uint8", "uint16",
    "uint32", "uint64", "bool",
)  # fmt: skip
OWN = len(DTYPES)
LIMIT = 1 << 30


class Refused(Exception):
    """The reader refuses a file; the text is its message."""


class Reader:
    """A process that runs the driver; used as a context manager."""

    def __init__(self, *command):
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def tensors(self, data, dtype=OWN, what="f", limit=LIMIT):
        """Type, shape and bytes of every tensor of a file, by name, as `examine.values_of` has them."""
        self._ask(what, limit << 8 | dtype, data)
        return self._tensors()

    def payloads(self, shard, what="s"):
        """The tensors of every payload in a shard, by the number of the payload."""
        self._ask(what, 0, shard)
        found = {}
        for _ in range(self._number("<I")):
            number = self._number("<Q")
            self._check()
            found[number] = self._tensors()
        return found

    def _tensors(self):
        found = {}
        while (size := self._number("<I")) != 0xFFFFFFFF:
            name = self._bytes(size).decode("utf-8")
            kind, axes = self._number("<I"), self._number("<I")
            shape = struct.unpack(f"<{axes}Q", self._bytes(8 * axes))
            found[name] = DTYPES[kind], shape, self._bytes(self._number("<Q"))
        return found

    def unpacked(self, frame, size, named=False):
        """The bytes of a frame of zstandard."""
        self._ask("Z" if named else "z", size, frame)
        return self._bytes(size)

    def _ask(self, what, number, data):
        self._process.stdin.write(what.encode() + struct.pack("<QQ", number, len(data)) + bytes(data))
        self._process.stdin.flush()
        self._check()

    def _check(self):
        code = self._number("<I")
        text = self._bytes(self._number("<I")).decode("utf-8")
        if code:
            raise Refused(text)

    def _number(self, form):
        return struct.unpack(form, self._bytes(struct.calcsize(form)))[0]

    def _bytes(self, size):
        data = self._process.stdout.read(size)
        if len(data) != size:
            raise AssertionError(f"the reader ended with {self._process.wait()}")
        return data


def supported(folder, compiler, options):
    """The options, where the compiler has them; otherwise none."""
    source = folder / "nothing.c"
    source.write_text("int main(void) { return 0; }\n")
    done = subprocess.run([compiler, *options, str(source), "-o", str(folder / "nothing")], capture_output=True)
    return options if done.returncode == 0 else []


def built(folder, compiler, options, source=DRIVER):
    """The driver or another program with the library in it, compiled with some options; its path."""
    program = folder / source.stem
    library = [str(path) for path in sorted(SOURCES.glob("*.c")) if path.name.startswith(("wf_", "waterfill"))]
    command = [compiler, *STRICT, *options, f"-I{SOURCES}", str(source), *library, "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"the reader in C does not compile:\n{done.stderr[:4000]}")
    return str(program)
