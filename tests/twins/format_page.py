"""The code of docs/format.md, run: what it defines are names of this module."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "format.md"


def frozen(name):
    """A frozen file of the format."""
    return (ROOT / "src" / "waterfill" / "codec" / name).read_bytes()


BLOCKS = re.findall(r"^```py\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
exec(compile("\n\n".join(BLOCKS), PAGE.name, "exec"), globals())
