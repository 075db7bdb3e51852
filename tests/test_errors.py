"""Texts of errors are of bounded length."""

import pytest

from waterfill.errors import LONGEST, FormatError, TargetError, UsageError, WaterfillError, first_line


@pytest.mark.parametrize("kind", [WaterfillError, FormatError, UsageError, TargetError])
def test_long_texts_lose_their_middle(kind):
    short = "a" * LONGEST
    assert str(kind(short)) == short
    for size in (LONGEST + 1, 10 * LONGEST, 10**7):
        text = str(kind("begin " + "x" * size + " end"))
        assert len(text) <= LONGEST
        assert text.startswith("begin x")
        assert text.endswith("x end")
        assert " ... " in text


def test_what_is_no_text_stays():
    assert TargetError(12.5).args == (12.5,)


def test_the_first_line_of_an_error_of_others():
    assert first_line(ValueError("\n one\ntwo")) == "one"
    assert first_line(KeyError()) == "KeyError"
