"""Shows what the lesson computed: the layer, a step, seeds, pairs and the interval over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from medcot.catalog import say
from medcot.notebook.lesson import LayerRow, PairedLoss
from medcot.notebook.views.charts import draw_interval
from medcot.notebook.views.markup import (
    callout,
    details,
    facts,
    folds,
    join,
    paragraph,
    small,
    table,
    text,
)
from medcot.notebook.views.rows import pieces_of
from medcot.stats.paired import PairedDifference, compare_means

if TYPE_CHECKING:
    from torch import Tensor

CURVE_POINTS = 16
"""Numbers of rows for which an interval is computed: a curve needs no more."""

CURVE_RESAMPLES = 999
NEARLY = 0.002
"""Nats by which a token's loss must change to be marked."""

_KINDS = {"improved": "good", "worse": "bad", "no evidence": "note"}


def show_layer(weight: Tensor, rank: int, language: str) -> str:
    """Show the layer's size, and how many numbers LoRA trains of it."""
    outer, inner = weight.shape
    few, all_of_it = rank * (outer + inner), outer * inner
    return facts(
        [
            ("W", f"{outer:,} × {inner:,}"),
            ("B", f"{outer:,} × {rank:,}"),
            ("A", f"{rank:,} × {inner:,}"),
            (say("trained_parameters", language), f"{few:,} / {all_of_it:,}"),
        ]
    )


def show_step(
    row: LayerRow,
    before: Tensor,
    after: Tensor,
    a: Tensor,
    b: Tensor,
    tokenizer: Any,
    language: str,
) -> str:
    """Show what one step did: the loss, the gradients, and the tokens that became likelier.

    Args:
        before: Each token's loss before the step, in nats.
        after: The same after it.
        a: The matrix A, with its gradient.
        b: The matrix B, with its gradient.
    """
    first, last = before.mean().item(), after.mean().item()
    found = facts(
        [
            (say("loss", language), f"{first:.4f} → {last:.4f}"),
            (say("gradient_of", language, name="A"), f"{_norm(a.grad):.3g}"),
            (say("gradient_of", language, name="B"), f"{_norm(b.grad):.3g}"),
            (say("largest_change", language, name="B"), f"{b.detach().abs().max().item():.2g}"),
        ]
    )
    pieces = list(pieces_of(tokenizer, row.targets.tolist()))
    if len(pieces) != len(before):  # characters of several tokens
        pieces = [tokenizer.decode([one]) for one in row.targets.tolist()]
    changes = (after - before.detach()).tolist()
    tokens = "".join(_marked(one, change) for one, change in zip(pieces, changes, strict=True))
    return join(
        found,
        f'<div class="mc-tokens" tabindex="0">{tokens}</div>',
        small(say("step_tokens", language)),
    )


def _norm(gradient: Tensor | None) -> float:
    return 0.0 if gradient is None else gradient.norm().item()


def _marked(piece: str, change: float) -> str:
    shown = text(piece.replace("\n", "↵\n"))
    if abs(change) < NEARLY:
        return f'<i title="{change:+.3f}">{shown}</i>'
    name = "ins" if change < 0 else "del"
    return f'<{name} title="{change:+.3f}">{shown}</{name}>'


def show_seeds(
    rows: Sequence[LayerRow],
    before: Sequence[float],
    after: Mapping[int, Sequence[float]],
    language: str,
) -> str:
    """Show the paired change of the rows' loss, by the seed of the adapter."""
    tokens = [len(row.targets) for row in rows]
    cells: list[tuple[str, ...]] = []
    changes: list[float] = []
    for seed, losses in after.items():
        found = compare_means(before, losses, tokens)
        if found is None:
            continue
        changes.append(found.difference)
        verdict = say(f"verdict_{found.verdict('lower').replace(' ', '_')}", language)
        numbers = (
            f"{found.difference:+.4f}",
            _interval(found, language, 4),
            f"{found.p_value:.3f}",
        )
        cells.append((f"{seed}", *(f'<span class="mc-number">{one}</span>' for one in numbers),
                      text(verdict)))  # fmt: skip
    keys = ("seed", "difference", "interval", "p_value", "verdict")
    lines = [table([say(key, language) for key in keys], cells)]
    if len(changes) > 1:
        low, high = f"{min(changes):+.4f}", f"{max(changes):+.4f}"
        lines.append(small(say("seeds_spread", language, n=len(changes), low=low, high=high)))
    lines.append(small(say("seeds_rows", language, n=len(rows), tokens=sum(tokens))))
    return join(*lines)


def show_pairs(pairs: Sequence[PairedLoss], change: float, language: str) -> str:
    """Show each pair's losses per token, and the change that was computed by hand."""
    cells = [
        (
            f"<code>{text(pair.id)}</code>",
            *(
                f'<span class="mc-number">{value}</span>'
                for value in (
                    f"{pair.before / pair.tokens:.3f}",
                    f"{pair.after / pair.tokens:.3f}",
                    f"{(pair.after - pair.before) / pair.tokens:+.3f}",
                    f"{pair.tokens:,}",
                )
            ),
        )
        for pair in pairs
    ]
    keys = ("before", "after", "difference", "tokens")
    listed = table(["id", *(say(key, language) for key in keys)], cells)
    told = facts([(say("change_by_hand", language, n=len(pairs)), f"{change:+.4f}")])
    return folds(told, details(say("each_pair", language), listed))


def show_interval(pairs: Sequence[PairedLoss], found: PairedDifference, language: str) -> str:
    """Show the library's numbers, and how the interval shrinks with the number of rows."""
    told = facts(
        [
            (say("change_by_library", language, n=found.n), f"{found.difference:+.4f}"),
            (say("interval", language), _interval(found, language)),
            (say("p_value", language), f"{found.p_value:.4f}"),
        ]
    )
    curve = draw_interval(interval_curve(tuple(pairs)), found.n, language)
    return join(told, curve)


@lru_cache(maxsize=32)
def interval_curve(pairs: tuple[PairedLoss, ...]) -> tuple[PairedDifference, ...]:
    """Return the comparison of the first 2, 3, … of ``pairs``, at most ``CURVE_POINTS`` of them."""
    most = len(pairs)
    steps = max(1, CURVE_POINTS - 1)
    counts = sorted({round(2 + (most - 2) * n / steps) for n in range(steps + 1)})
    curve: list[PairedDifference] = []
    for count in (one for one in counts if 2 <= one <= most):
        few = pairs[:count]
        found = compare_means(
            [pair.before for pair in few],
            [pair.after for pair in few],
            [pair.tokens for pair in few],
            resamples=CURVE_RESAMPLES,
        )
        if found is not None:
            curve.append(found)
    return tuple(curve)


def show_verdict(found: PairedDifference, verdict: str, language: str) -> str:
    """Show the verdict over the rows that were compared, in one sentence."""
    measure = say("measure_nll", language)
    said = say(f"verdict_{verdict.replace(' ', '_')}", language)
    title = say("found", language, measure=measure, found=said)
    why = say(
        "verdict_why",
        language,
        n=found.n,
        interval=_interval(found, language),
        p=f"{found.p_value:.4f}",
    )
    return callout(_KINDS[verdict], title, paragraph(why))


def _interval(found: PairedDifference, language: str, digits: int = 3) -> str:
    if found.low is None or found.high is None:
        return say("no_interval", language)
    return say(
        "interval_of", language, low=f"{found.low:+.{digits}f}", high=f"{found.high:+.{digits}f}"
    )
