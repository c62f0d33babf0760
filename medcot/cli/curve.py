"""Draws a curve with the block characters of a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

_BLOCKS = " ▁▂▃▄▅▆▇█"


def draw_curve(values: Sequence[float], width: int = 60, height: int = 5) -> list[str]:
    """Return the lines of a curve, the first with its highest and the last with its lowest value.

    With more values than columns, each column shows the mean of its share. Values that are not
    finite leave a gap. There are no lines for fewer than two values.
    """
    columns = _columns(values, width)
    known = [value for value in columns if math.isfinite(value)]
    if len(known) < 2:
        return []
    low, high = min(known), max(known)
    span = (high - low) or 1.0
    steps = height * (len(_BLOCKS) - 1)
    levels = [
        1 + round((value - low) / span * (steps - 1)) if math.isfinite(value) else 0
        for value in columns
    ]
    labels = {0: f"{high:.3f}", height - 1: f"{low:.3f}"}
    margin = max(map(len, labels.values()))
    lines: list[str] = []
    for row in range(height):
        floor = (height - 1 - row) * (len(_BLOCKS) - 1)
        drawn = "".join(_BLOCKS[max(0, min(len(_BLOCKS) - 1, one - floor))] for one in levels)
        lines.append(f"{labels.get(row, ''):>{margin}} ┤{drawn.rstrip()}")
    return lines


def _columns(values: Sequence[float], width: int) -> list[float]:
    if len(values) <= width:
        return list(values)
    edges = [round(column * len(values) / width) for column in range(width + 1)]
    return [sum(values[first:last]) / (last - first) for first, last in pairwise(edges)]
