"""Name patterns: names mean themselves, everything else is matched."""

import pytest

from waterfill.errors import WaterfillError
from waterfill.models.patterns import excluded

NAMES = ("p.w[0]", "p.w0", "p.w[0].bias", "q*", "qa", "r?", "rx", "[a]", "a", "layers.1.w", "layers.2.w")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("p.w[0]", {"p.w[0]"}),
        ("q*", {"q*"}),
        ("r?", {"r?"}),
        ("[a]", {"[a]"}),
        ("p.w[0].*", {"p.w[0].bias"}),
        ("p.w[0]*", {"p.w[0]", "p.w[0].bias"}),
        ("layers.[12].w", {"layers.1.w", "layers.2.w"}),
        ("layers.?.w", {"layers.1.w", "layers.2.w"}),
        ("p.*", {"p.w[0]", "p.w0", "p.w[0].bias"}),
    ],
)
def test_a_name_is_a_pattern_of_itself(pattern, expected):
    names = {name: name for name in NAMES}
    assert set(excluded(names, (), [pattern])) == expected
    assert set(NAMES) - set(excluded(names, [pattern], ())) == expected


def test_a_pattern_of_nothing_is_an_error():
    with pytest.raises(WaterfillError, match="matches no tensor"):
        excluded({"a": "a"}, (), ["b[0]"])
