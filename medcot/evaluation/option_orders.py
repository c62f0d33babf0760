"""Reads a question in cyclic orders of its options, so that no letter is preferred.

A small model may choose "A" whatever stands there. If its log-probabilities are a part for the
option plus a part for the letter, their mean over all cyclic orders holds the same letter parts
for every option.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace

from medcot.records import Question

_REFERS = re.compile(
    r"\b(?:both|all|neither|none|either|any) of (?:these|them)\b"
    r"|\b(?:both|all|neither|none|either|any) of the (?:below|preceding|following)\b(?! \w)"
    r"|\b(?:both|all|none|any) above\b(?! (?:the|\d))|\bthe (?:above|foregoing)\b(?!-)"
    r"|\b(?:above|below|preceding|following|other) (?:options?|answers?|choices?|statements?)\b"
    r"|\b(?:options?|answers?|choices?|statements?) (?:above|below)\b"
    r"|(?:\A|[\s,，、；;(（除非是由和])以上|上述|下列|前述",
    re.IGNORECASE,
)
_LETTER = r"(?<![A-Za-z])[A-J](?![A-Za-z])"
_LETTERS_ALONE = re.compile(
    rf"(?:(?:both|either|neither|only|options?|answers?|choices?|选项|答案)\s*)*{_LETTER}"
    rf"(?:\s*(?:,|，|、|/|&|\+|\band\b|\bor\b|\bnor\b|\bbut not\b|和|与|或|及)+\s*{_LETTER})+"
    r"\s*(?:only|together|above|(?:are |is )?(?:both )?(?:correct|true|right|wrong|false)"
    r"|[都均皆全]?(?:不?对|不?正确|不?是|错误?))?\s*[.。]?",
    re.IGNORECASE,
)
"""An option that is nothing but letters of others: "A and C", but not "vitamins A and D"."""


def list_orders(question: Question, orders: int) -> list[Question]:
    """List the question in its given order, then turned by one option, two and so on.

    There are ``orders`` of them, or as many as it has options (0, or fewer). A question with an
    option such as "all of the above" has one.
    """
    letters, texts = list(question.options), list(question.options.values())
    count = min(orders or len(letters), len(letters))
    if any(_refers(text) for text in texts):
        count = 1
    return [
        replace(
            question,
            options=dict(zip(letters, texts[shift:] + texts[:shift], strict=True)),
            answer=letters[(letters.index(question.answer) - shift) % len(letters)],
        )
        for shift in range(count)
    ]


def _refers(text: str) -> bool:
    """Tell whether an option speaks of other options, whose order then means something."""
    return bool(_REFERS.search(text) or _LETTERS_ALONE.fullmatch(text.strip()))


def average_losses(letters: Sequence[str], readings: Sequence[Sequence[float]]) -> dict[str, float]:
    """Average the losses of each option over the orders; return them by its given letter, in nats.

    ``readings`` has a row per order of :func:`list_orders`, with a loss per position. With several
    orders the losses of each are normalised, to the probabilities of its letters alone.
    """
    if len(readings) == 1:
        return dict(zip(letters, readings[0], strict=True))
    sums = [0.0] * len(letters)
    for shift, losses in enumerate(readings):
        lowest = min(losses)
        total = lowest - math.log(sum(math.exp(lowest - loss) for loss in losses))
        for position, loss in enumerate(losses):
            sums[(position + shift) % len(letters)] += loss - total
    return {letter: total / len(readings) for letter, total in zip(letters, sums, strict=True)}


def list_letters(letters: Sequence[str], readings: Sequence[Sequence[float]]) -> tuple[str, ...]:
    """List the likeliest letter of each order; of equals, the first."""
    return tuple(
        letters[min(range(len(losses)), key=lambda place: losses[place])] for losses in readings
    )
