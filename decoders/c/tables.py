"""Write `wf_tables.h`, the frozen tables of the format as arrays: `python decoders/c/tables.py [--check]`.

Those of `bank`, `half` and `zero` are the files of `src/waterfill/codec` byte for byte: for every shape and scale one
byte K, then the 16-bit frequencies of the magnitudes 0..K. `wf_cosines` has the cosines of 0 to 512 parts of 2048 of a
turn, from which all others and the sines follow.
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
CODEC = FOLDER.parents[1] / "src" / "waterfill" / "codec"
TURN = 2048
TYPES = {"uint8_t": "{}", "uint16_t": "{}", "uint32_t": "0x{:08X}"}
HEAD = """\
/* The frozen tables of the format, written by tables.py. SPDX-License-Identifier: MIT */
#ifndef WF_TABLES_H
#define WF_TABLES_H

#include <stdint.h>
"""


def array(name: str, kind: str, values: Iterable[int]) -> str:
    """An array in C."""
    words, lines, line = [TYPES[kind].format(value) for value in values], [], ""
    for word in words:
        if len(line) + len(word) > 115:
            lines.append(line)
            line = ""
        line += f"{word},"
    return f"\nstatic const {kind} {name}[{len(words)}] = {{\n" + "\n".join([*lines, line]) + "\n};\n"


def bits_of(value: float) -> int:
    """The pattern of the nearest float32."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    return int(bits)


def places(bank: bytes) -> list[int]:
    """Where the tables of a bank begin."""
    found, at = [], 0
    while at < len(bank):
        found.append(at)
        at += 1 + 2 * (bank[at] + 1)
    return found


def crc_of(byte: int) -> int:
    """The CRC-32 of a byte, as a table of it has that."""
    for _ in range(8):
        byte = byte >> 1 ^ (0xEDB88320 if byte & 1 else 0)
    return byte


def header() -> str:
    """The whole file."""
    text = HEAD
    for name in ("bank", "half", "zero"):
        data = (CODEC / f"{name}.bin").read_bytes()
        text += array(f"wf_{name}_bytes", "uint8_t", data)
        text += array(f"wf_{name}_places", "uint16_t", places(data))
    odds = (CODEC / "odds.bin").read_bytes()
    text += array("wf_odds", "uint16_t", struct.unpack(f"<{len(odds) // 2}H", odds))
    text += array("wf_phrases", "uint8_t", (CODEC / "phrases.bin").read_bytes())
    text += array("wf_octave", "uint32_t", (bits_of(2.0 ** (n / 64)) for n in range(64)))
    text += array("wf_crc", "uint32_t", map(crc_of, range(256)))
    ahead = [crc_of(byte) for byte in range(256)]
    text += "\n#ifndef WF_SMALL"
    crcs: list[int] = []
    for _ in range(7):  # of a byte that 1, 2, ... zeros follow
        ahead = [crc >> 8 ^ crc_of(crc & 255) for crc in ahead]
        crcs += ahead
    text += array("wf_crc_ahead", "uint32_t", crcs) + "#endif\n"
    quarter = [math.cos(2 * math.pi * n / TURN) for n in range(TURN // 4)] + [0.0]
    text += array("wf_cosines", "uint32_t", map(bits_of, quarter))
    return text + "\n#endif\n"


def main() -> None:
    """Write the file, or compare it."""
    path, text = FOLDER / "wf_tables.h", header()
    if "--check" not in sys.argv[1:]:
        path.write_text(text)
    elif path.read_text() != text:
        sys.exit(f"{path} is not what tables.py writes; expected the tables of {CODEC}; run it again")


if __name__ == "__main__":
    main()
