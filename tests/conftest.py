"""Helpers that several tests share."""

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent / "twins"), str(Path(__file__).parent)]
pytest.register_assert_rewrite("conformance")
