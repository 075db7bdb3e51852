"""Set-up of all tests: where twins lie, and one thread for the tiny networks, in other processes as well."""

import os
import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent / "twins"), str(Path(__file__).parent)]
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before PyTorch is imported
pytest.register_assert_rewrite("conformance")
