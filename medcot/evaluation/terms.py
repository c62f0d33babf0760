"""Finds terms in an answer: words and phrases, with a small notation for their forms.

A term is looked for in folded text (:func:`~.answer_markers.fold`) as whole words; next to a
Chinese character any place is the edge of a word. ``#`` in a term stands for a number, ``*`` at its
end for any ending. A term after "not", "rather than" or the like does not count as mentioned. One
that begins with ``!`` is mentioned only in a sentence with a negation. :data:`UNKNOWN` and
:data:`WRONG` stand for whole lists of phrases.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

from medcot.data.text import HAN
from medcot.evaluation.answer_markers import (
    calls_wrong,
    doubts_existence,
    fold,
    list_denials,
)

Terms = tuple[str, ...]

UNKNOWN, WRONG = "@unknown", "@wrong"
"""Terms that stand for what :func:`~.answer_markers.doubts_existence` ("no such drug") and
:func:`~.answer_markers.calls_wrong` ("that is a mistake") find."""

_HAN = re.compile(f"[{HAN}]")
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?"
_THOUSANDS = re.compile(r",\d{3}(?!\d)")
_NEGATED = re.compile(
    r"(?:\bnot|n't|\brather than|\binstead of|不是|并非|而非|不要|请勿|(?<![特分区级类])别)"
    r"\s*(?:in |an? |the )?$"
)


def mentions_each(folded: str, groups: Iterable[Terms]) -> bool:
    """Tell whether a term of every group is mentioned."""
    return all(mentions_any(folded, group) for group in groups)


def mentions_any(folded: str, terms: Iterable[str]) -> bool:
    """Tell whether one of the terms is mentioned."""
    return any(mentions(folded, term) for term in terms)


def mentions(folded: str, term: str) -> bool:
    """Tell whether the term is mentioned: it occurs, and not only after a "not"."""
    if term == UNKNOWN:
        return doubts_existence(folded)
    if term == WRONG:
        return calls_wrong(folded)
    if term.startswith("!"):
        return any(find_term(sentence, term[1:]) for sentence in list_denials(folded))
    places = find_term(folded, term)
    return any(not _NEGATED.search(folded[max(0, place - 20) : place]) for place in places)


def find_term(folded: str, term: str) -> list[int]:
    """Return where the term, which has no ``!`` or ``@``, occurs, whatever is before it."""
    pattern = _compile_term(term)
    open_end = term.endswith("*")
    return [
        found.start()
        for found in pattern.finditer(folded)
        if not _runs_on(folded, found.start(), -1)
        and (open_end or not _runs_on(folded, found.end(), 1))
    ]


def is_term(text: str) -> bool:
    """Tell whether ``text`` is a term: one with ``@`` is known, ``!`` is first and ``*`` last."""
    if text.startswith("@"):
        return text in (UNKNOWN, WRONG)
    return "*" not in text[:-1] and "!" not in text[1:] and bool(fold(text.replace("#", "0")))


@cache
def _compile_term(term: str) -> re.Pattern[str]:
    parts = fold(term.removesuffix("*").replace("#", "\0")).split("\0")
    return re.compile(_NUMBER.join(map(re.escape, parts)))


def _runs_on(text: str, edge: int, step: int) -> bool:
    """Tell whether a word or number crosses ``edge`` of a match, seen from inside it.

    ``step`` is the direction outwards: -1 at the match's start, 1 at its end.
    """
    inside, outside = (edge, edge - 1) if step < 0 else (edge - 1, edge)
    if not (0 <= outside < len(text) and _is_wordlike(text[inside])):
        return False
    beyond = outside + step
    between = 0 <= beyond < len(text) and text[beyond].isdigit() and text[inside].isdigit()
    decimal = between and text[outside] == "."
    thousands = between and bool(_THOUSANDS.match(text, outside))
    return _is_wordlike(text[outside]) or decimal or thousands


def _is_wordlike(char: str) -> bool:
    return char.isalnum() and not _HAN.match(char)
