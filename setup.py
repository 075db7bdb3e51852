"""Build the reader in C as a module of Python, where there is a compiler; without one Python reads alone."""

import sys
from pathlib import Path

from setuptools import Extension, setup

FOLDER = Path("decoders/c")
SOURCES = sorted(path.as_posix() for path in [FOLDER / "waterfill.c", *FOLDER.glob("wf_*.c")])
FLAGS = [] if sys.platform == "win32" else ["-O3", "-g0", "-std=c99", "-ffp-contract=off", "-fvisibility=hidden"]

setup(
    ext_modules=[
        Extension(
            "waterfill.codec._native",
            ["src/waterfill/codec/_native.c", *SOURCES],
            include_dirs=[FOLDER.as_posix()],
            depends=sorted(path.as_posix() for path in FOLDER.glob("*.h")),
            extra_compile_args=FLAGS,
            py_limited_api=True,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
