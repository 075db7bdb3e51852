"""What a process has loaded already."""

import sys


def has_kernels() -> bool:
    """Whether numba is there and was loaded: it takes longer to load than small files take without it."""
    return "numba" in sys.modules
