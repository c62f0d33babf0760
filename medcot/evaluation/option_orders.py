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
    r"\b(?:above|below|preceding|following)\b"
    r"|\b(?:both|all|neither|none|either) of (?:these|them)\b"
    r"|(?<![A-Za-z])[A-J]\s*(?:,|/|&|\+|\band\b|\bor\b|\bnor\b|和|与|或|及|、)\s*[A-J](?![A-Za-z])"
    r"|以上|上述|下列|前述"
)
"""What refers to other options, whose order then means something."""


def list_orders(question: Question, orders: int) -> list[Question]:
    """List the question in its given order, then turned by one option, two and so on.

    There are ``orders`` of them, or as many as it has options (0, or fewer). A question with an
    option such as "all of the above" has one.
    """
    letters, texts = list(question.options), list(question.options.values())
    count = min(orders or len(letters), len(letters))
    if any(_REFERS.search(text) for text in texts):
        count = 1
    return [
        replace(
            question,
            options=dict(zip(letters, texts[shift:] + texts[:shift], strict=True)),
            answer=letters[(letters.index(question.answer) - shift) % len(letters)],
        )
        for shift in range(count)
    ]


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
