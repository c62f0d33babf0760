"""Checks the regular expressions that come with data: a wrong one must not crash or never end."""

from __future__ import annotations

import re
from functools import lru_cache

LONGEST = 2000
"""Characters of a pattern."""

WIDEST = 100_000
"""Characters in all ranges of a pattern's sets: without regard to case, each one is looked at."""

PROBE_S = 0.2
"""Seconds that a pattern may take on the texts of :func:`_probes`, which have 200 characters."""

_RANGE = re.compile(
    r"(\\U[0-9a-fA-F]{8}|\\u[0-9a-fA-F]{4}|\\x..|[^\\])-(\\U[0-9a-fA-F]{8}|\\u....|.)"
)


@lru_cache(maxsize=4096)
def check_pattern(pattern: str) -> None:
    """Check that a pattern compiles, and that it takes no exponential time on a repeated text.

    Raises:
        ValueError: it does not, with the reason.
    """
    if len(pattern) > LONGEST:
        raise ValueError(f"a pattern of {len(pattern):,} characters, over {LONGEST:,}")
    if sum(map(_width, _RANGE.findall(pattern))) > WIDEST:
        raise ValueError(f"a pattern with ranges over {WIDEST:,} characters")
    import regex

    try:
        re.compile(pattern, re.IGNORECASE)
        compiled = regex.compile(pattern, regex.IGNORECASE)
    except (re.error, regex.error, OverflowError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"{pattern[:60]!r} is no pattern ({reason})") from None
    try:
        for text in _probes(pattern):
            compiled.search(text, timeout=PROBE_S)
    except TimeoutError:
        raise ValueError(f"{pattern[:60]!r} takes too long: repetition in repetition") from None


def _probes(pattern: str) -> list[str]:
    """Return texts on which patterns backtrack: a character over and over, and no match at last."""
    return [f"{char * 200}\0" for char in sorted({*pattern[:200], "a", "0", " "})]


def _width(ends: tuple[str, str]) -> int:
    first, last = (
        int(end[2:], 16) if re.fullmatch(r"\\[xuU][0-9a-fA-F]+", end) else ord(end[-1])
        for end in ends
    )
    return max(0, last - first)
