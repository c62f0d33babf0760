"""Changes the thoughts of training rows, to find out whether training on thoughts does anything.

The rows are chosen with their own thoughts first, so that every variant trains on the same rows.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from random import Random
from typing import Any

from medcot.config.schema import RunConfig
from medcot.data.selection import CACHED_FROM, ROWS_AT_ONCE, Selection, tokenize_cases
from medcot.data.text import HAN
from medcot.data.tokenization import TokenizedRow
from medcot.data.tokenized import StoredRows
from medcot.errors import InputError
from medcot.records import Case

CHANGED = ("removed", "shuffled", "another")
"""Values of ``--thought`` that train on rows with changed thoughts."""

DONORS = 8
"""Thoughts of similar length of which one is drawn for ``another``."""

_WORDS = re.compile(rf"[{HAN}]|[^\s{HAN}]+")
"""A Chinese character, or what stands between spaces."""


def change_rows(
    selection: Selection,
    cases: Sequence[Case],
    donors: Sequence[Case],
    config: RunConfig,
    tokenizer: Any,
) -> Selection:
    """Return the selected rows with their thoughts changed as ``config.thought`` says.

    A thought with which a row would be longer than ``config.max_length`` loses its last words.

    Args:
        cases: The cases of the selected rows.
        donors: The cases whose thoughts ``another`` gives away.

    Raises:
        InputError: There is no other thought to give.
    """

    def rows() -> Iterator[TokenizedRow]:
        changed = change_thoughts(cases, donors, config)
        while part := list(islice(changed, ROWS_AT_ONCE)):
            found = tokenize_cases(part, config, tokenizer)
            for case in part:
                yield _fit(case, found[case.id], config, tokenizer)

    found = StoredRows.write(rows()) if len(cases) >= CACHED_FROM else tuple(rows())
    return replace(selection, rows=found)


def change_thoughts(
    cases: Iterable[Case], donors: Sequence[Case], config: RunConfig
) -> Iterator[Case]:
    """Yield the cases with their thoughts changed as ``config.thought`` says.

    ``removed`` leaves the thoughts out. ``shuffled`` lets the words of each change places; spaces
    and line breaks stay. ``another`` gives each the thought of another case, drawn of those that
    are nearest to its own in length and, where there are any, no longer. The seed that also chooses
    questions decides both.
    """
    seed = config.seed if config.choice_seed is None else config.choice_seed
    lengths: list[tuple[int, int]] = []
    if config.thought == "another":
        lengths = sorted((len(case.thought), at) for at, case in enumerate(donors) if case.thought)
    for case in cases:
        # Text as a seed gives the same numbers in every process and version of Python.
        draw = Random(f"{seed}:{case.id}")
        thought = ""
        if config.thought == "shuffled":
            thought = _shuffle_words(case.thought, draw)
        elif config.thought == "another" and case.thought:
            thought = _draw_thought(case.thought, donors, lengths, draw)
        yield replace(case, thought=thought)


def _fit(case: Case, row: TokenizedRow, config: RunConfig, tokenizer: Any) -> TokenizedRow:
    """Cut words from the end of a thought until the row is short enough, or one word is left."""
    while (excess := len(row) - config.max_length) > 0:
        begins = [found.start() for found in _WORDS.finditer(case.thought)]
        if len(begins) < 2:
            break
        cut = begins[max(1, len(begins) - excess)]
        case = replace(case, thought=case.thought[:cut].rstrip())
        row = tokenize_cases([case], config, tokenizer)[case.id]
    return row


def _shuffle_words(text: str, draw: Random) -> str:
    words: list[str] = _WORDS.findall(text)
    draw.shuffle(words)
    left = iter(words)
    return _WORDS.sub(lambda _: next(left), text)


def _draw_thought(
    own: str, donors: Sequence[Case], lengths: Sequence[tuple[int, int]], draw: Random
) -> str:
    place = bisect_right(lengths, (len(own), len(donors)))
    for nearest in (reversed(range(place)), range(place, len(lengths))):
        thoughts = (donors[lengths[at][1]].thought for at in nearest)
        if found := list(islice((one for one in thoughts if one != own), DONORS)):
            return draw.choice(found)
    got = "no training row has another thought than this one"
    raise InputError("--thought another", got, "use more rows")
