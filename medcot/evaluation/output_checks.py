"""Checks an output's form, whatever it says: degenerate loops, language, length of its parts."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from medcot.data.text import HAN
from medcot.records import Language

LONGEST_UNIT = 400  # characters: a repeated paragraph is a loop too
SHORTEST_LOOP = 80  # characters in all: "ha ha ha" and a table's dashes are not a loop
COPIES = 3

_HAN = re.compile(f"[{HAN}]")
_WORD = re.compile(rf"[^\W\d_{HAN}]+")
_RULE = re.compile(r"([-=_*.#~|+ ])\1{3,}")


def has_loop(text: str) -> bool:
    """Tell whether a passage repeats three or more times in a row, over 80 characters or more.

    For each passage length, the text is compared with itself shifted by that length: a loop
    is a run of equal characters.
    """
    folded = _RULE.sub(r"\1", " ".join(text.split()))
    folded = re.sub(r"\d+", "0", folded)  # "Step 5: … Step 6: …" is a loop too
    codes = np.frombuffer(folded.encode("utf-32-le"), np.uint32)
    for unit in range(1, min(LONGEST_UNIT, (len(codes) + 1) // COPIES) + 1):
        # One less: the last copy lacks the space that separates it from the next.
        needed = max((COPIES - 1) * unit - 1, SHORTEST_LOOP - unit)
        if needed <= len(codes) - unit and _longest_run(codes[unit:] == codes[:-unit]) >= needed:
            return True
    return False


def is_in_language(text: str, language: Language) -> bool:
    """Tell whether ``text`` is mostly in ``language``, by Chinese characters against Latin words.

    A Chinese answer has far more characters than abbreviations. Text with neither: False.
    """
    han, words = len(_HAN.findall(text)), len(_WORD.findall(text))
    return han > words if language == "zh" else words > han


def divide_tokens(tokens: int, thought: str, answer: str) -> tuple[int, int]:
    """Divide ``tokens`` between thought and answer in proportion to their characters.

    The tokenizer is unknown here; within one reply, characters per token vary little.
    """
    total = len(thought) + len(answer)
    if not total:
        return tokens, 0
    of_answer = round(tokens * len(answer) / total)
    return tokens - of_answer, of_answer


def _longest_run(equal: NDArray[np.bool_]) -> int:
    edges = np.flatnonzero(np.diff(np.concatenate(([0], equal.view(np.int8), [0]))))
    return int((edges[1::2] - edges[::2]).max(initial=0))
