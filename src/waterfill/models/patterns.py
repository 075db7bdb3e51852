"""Name patterns that say which tensors are quantized."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from waterfill.errors import WaterfillError


def excluded(first: Mapping[str, str], include: Sequence[str], exclude: Sequence[str]) -> dict[str, str]:
    """The reason for every name that the patterns take out.

    Args:
        first: every name, with the first name of the same tensor; a tied tensor is meant by any of its names.
        include: patterns (fnmatch; a name is a pattern of itself, whatever is in it); where there are any, only what
            matches is quantized.
        exclude: patterns of what is stored without loss.

    Raises:
        WaterfillError: a pattern matches nothing.
    """
    taken_out = {first[name]: f"excluded by the pattern {p!r}" for name, p in _matches(first, exclude, "exclude")}
    included = {first[name] for name, _ in _matches(first, include, "include")}
    reasons = {}
    for name in first:
        if first[name] in taken_out:
            reasons[name] = taken_out[first[name]]
        elif len(include) > 0 and first[name] not in included:
            reasons[name] = "excluded by include, no pattern of which matches"
    return reasons


def _matched(names: Iterable[str], pattern: str) -> list[str]:
    """The names that a pattern means: itself, else those with its brackets as they are, else those that it matches."""
    literal = pattern.replace("[", "[[]")
    tiers: tuple[Callable[[str], bool], ...] = (
        lambda name: name == pattern,
        lambda name: fnmatchcase(name, literal),
        lambda name: fnmatchcase(name, pattern),
    )
    found = ([name for name in names if fits(name)] for fits in tiers)
    return next(filter(None, found), [])


def _matches(names: Iterable[str], patterns: Sequence[str], option: str) -> list[tuple[str, str]]:
    """Every name with a pattern that matches it."""
    found = []
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        matching = _matched(names, pattern)
        if not matching:
            raise WaterfillError(
                f"Pattern {pattern!r} of {option} matches no tensor; expected a name or a pattern such as 'layer1.*'. "
                f"The names are {listed(names)}; correct the pattern or leave it out."
            )
        found += [(name, pattern) for name in matching]
    return found


def listed(names: Iterable[str], limit: int = 5) -> str:
    """The first names, quoted, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(repr(name) for name in names[:limit]) or "none") + more
