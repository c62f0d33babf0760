"""How an answer behaves, whatever it says: looping, language, and how its length is divided."""

from __future__ import annotations

import re

import numpy as np

from medcot.records import Language

LONGEST_UNIT = 400  # characters: a repeated paragraph is a loop too
SHORTEST_LOOP = 80  # characters in all: "ha ha ha" and a table's dashes are not a loop
COPIES = 3

_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
_WORD = re.compile(r"[^\W\d_\u3400-\u4dbf\u4e00-\u9fff]+")
_RULE = re.compile(r"([-=_*.#~|+ ])\1{3,}")


def loops(text: str) -> bool:
    """Whether some passage stands three or more times in a row, over at least 80 characters.

    For each length of the passage the text is compared with itself moved by that length: a loop
    shows as a run of equal characters.
    """
    folded = _RULE.sub(r"\1", " ".join(text.split()))
    folded = re.sub(r"\d+", "0", folded)  # "Step 5: … Step 6: …" goes round all the same
    codes = np.frombuffer(folded.encode("utf-32-le"), np.uint32)
    for unit in range(1, min(LONGEST_UNIT, (len(codes) + 1) // COPIES) + 1):
        # One less: the last copy has lost the space that parts it from the next.
        needed = max((COPIES - 1) * unit - 1, SHORTEST_LOOP - unit)
        if needed <= len(codes) - unit and _longest_run(codes[unit:] == codes[:-unit]) >= needed:
            return True
    return False


def speaks(text: str, language: Language) -> bool:
    """Whether ``text`` is mostly in ``language``: Chinese characters against words of letters.

    Abbreviations in a Chinese answer are few against its characters. Without either: False.
    """
    han, words = len(_HAN.findall(text)), len(_WORD.findall(text))
    return han > words if language == "zh" else words > han


def share_tokens(tokens: int, thought: str, answer: str) -> tuple[int, int]:
    """``tokens`` divided between thought and answer by their characters.

    The model's tokenizer is not known here; within one reply its rate is near enough even.
    """
    total = len(thought) + len(answer)
    if not total:
        return tokens, 0
    of_answer = round(tokens * len(answer) / total)
    return tokens - of_answer, of_answer


def _longest_run(equal: np.ndarray) -> int:
    edges = np.flatnonzero(np.diff(np.concatenate(([0], equal.view(np.int8), [0]))))
    return int((edges[1::2] - edges[::2]).max(initial=0))
