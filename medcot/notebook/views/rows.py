"""Shows data on a page: one row, a table of rows, the tokens that are trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from medcot.catalog import in_language, say
from medcot.data.contamination import Overlap
from medcot.data.tokenization import TokenizedRow
from medcot.notebook.preview import Material, SelectedRows
from medcot.notebook.results import ErrorText
from medcot.notebook.views.charts import draw_lengths
from medcot.notebook.views.markup import (
    callout,
    card,
    columns,
    details,
    facts,
    join,
    paragraph,
    paragraphs,
    prose,
    small,
    table,
    text,
)
from medcot.records import Case, Dropped, Prompt

PAGE = 8
"""Rows of one page of the data table."""


def show_case(case: Case, language: str) -> str:
    """Show one row in full: question, thought and answer."""
    named = case.id + (f" · {case.specialty}" if case.specialty else "")
    answer = card(say("response", language), prose(case.response), "mc-answer")
    thought = card(say("thought", language), prose(case.thought), "mc-thought")
    asked = card(f"{say('question', language)} ({named})", paragraphs(case.question))
    return join(
        *(card(turn.role, paragraphs(turn.content)) for turn in case.turns),
        columns(asked, thought, answer) if case.thought else columns(asked, answer),
    )


def show_pair(pair: Prompt, language: str) -> str:
    """Show the two parts of a row: what is read, and what has to be written."""
    return columns(
        card(say("pair_prompt", language), paragraphs(pair.text)),
        card(say("pair_completion", language), paragraphs(pair.completion), "mc-thought"),
    )


def show_tokens(row: TokenizedRow, tokenizer: Any, language: str) -> str:
    """Show a row as tokens: masked ones in grey, labelled ones highlighted."""
    read, learnt = len(row.prompt_ids), len(row.completion_ids)
    share = 100 * learnt / (read + learnt)
    counted = facts(
        [
            (say("tokens_read", language), f"{read:,}"),
            (say("tokens_learnt", language), f"{learnt:,} ({share:.0f} %)"),
            (say("tokens_together", language), f"{read + learnt:,}"),
        ]
    )
    shown = (
        f'<div class="mc-tokens" tabindex="0">'
        f'<span class="mc-read">{_spans(tokenizer, row.prompt_ids)}</span>'
        f'<span class="mc-learnt">{_spans(tokenizer, row.completion_ids)}</span></div>'
    )
    legend = (
        f'<p class="mc-legend"><span class="mc-read"><i>{text(say("read", language))}</i></span> '
        f'<span class="mc-learnt"><i>{text(say("learnt", language))}</i></span></p>'
    )
    return join(f'<div class="mc-line">{counted}{legend}</div>', shown)


def _spans(tokenizer: Any, ids: Sequence[int]) -> str:
    pieces: list[str] = []
    for piece in pieces_of(tokenizer, ids):
        broken = piece.replace("\n", "↵\n")
        pieces.append(f"<i>{text(broken)}</i>")
    return "".join(pieces)


def pieces_of(tokenizer: Any, ids: Sequence[int]) -> Iterator[str]:
    """Yield the text of each token; tokens that are parts of one character are joined."""
    held: list[int] = []
    for one in ids:
        held.append(one)
        piece = tokenizer.decode(held)
        if "\ufffd" in piece and len(held) < 8:
            continue
        yield piece
        held = []
    if held:
        yield tokenizer.decode(held)


def show_cases(
    cases: Sequence[Case], lengths: Mapping[str, TokenizedRow], page: int, total: int, language: str
) -> str:
    """Show one page of rows as a table; ``total`` is the number of rows before filters."""
    pages = max(1, -(-len(cases) // PAGE))
    page = min(max(1, page), pages)
    shown = cases[(page - 1) * PAGE : page * PAGE]
    rows = [
        (
            f"<code>{text(case.id)}</code>",
            text(case.specialty),
            text(_short(case.question)),
            text(_short(case.response)),
            f'<span class="mc-number">{len(lengths[case.id]):,}</span>' if lengths else "",
        )
        for case in shown
    ]
    headers = ("id", *(say(k, language) for k in ("specialty", "question", "response", "tokens")))
    said = say("rows_found", language, n=len(cases), total=total, page=page, pages=pages)
    return join(table(headers, rows, "mc-rows"), small(said))


def show_lengths(material: Material, longest: int, language: str) -> str:
    """Draw the histogram of the rows' lengths."""
    return draw_lengths(tuple(len(row) for row in material.rows.values()), longest, language)


def show_selection(material: Material, rows: SelectedRows, language: str) -> str:
    """Show how the data set becomes training rows, and what is left out and why."""
    names = ("train", "validation", "test")
    pairs = [(say(f"part_{name}", language), f"{material.counts[name]:,}") for name in names]
    pairs.append((say("trained_on", language), f"{rows.count:,}"))
    parts = [facts(pairs)]
    if material.dataset.synthetic:
        parts.append(small(say("synthetic", language)))
    if not material.own_data:
        parts.append(callout("note", say("stand_in", language)))
    elif not rows.measured:
        parts.append(callout("note", say("other_tokenizer", language)))
    left_out = [*_dropped(rows.dropped, language), *_overlapping(rows.overlaps, language)]
    if left_out:
        headers = ("id", say("why", language))
        parts.append(
            details(say("left_out", language, n=len(left_out)), table(headers, left_out[:200]))
        )
    else:
        parts.append(paragraph(say("nothing_left_out", language)))
    return join(*parts)


def _dropped(rows: Sequence[Dropped], language: str) -> list[tuple[str, str]]:
    return [
        (f"<code>{text(row.id)}</code>", text(in_language(row.reason, language))) for row in rows
    ]


def _overlapping(overlaps: Sequence[Overlap], language: str) -> list[tuple[str, str]]:
    return [
        (
            f"<code>{text(overlap.case_id)}</code>",
            text(
                say("leaked", language, other=overlap.evaluation_id, share=f"{overlap.share:.0%}")
            ),
        )
        for overlap in overlaps
    ]


def show_failure(failure: ErrorText, language: str) -> str:
    """An error as a note with what to do; everything else on the page goes on."""
    title = say(f"failure_{failure.kind}", language)
    what, remedy = (in_language(said, language) for said in (failure.what, failure.remedy))
    lines = [f"{failure.where}: {what}" if failure.where else what]
    if remedy:
        lines.append(say(f"remedy_{failure.kind}", language, remedy=remedy))
    return callout("bad", title, "".join(paragraph(line) for line in lines))


def _short(value: str, width: int = 150) -> str:
    folded = " ".join(value.split())
    return folded if len(folded) <= width else folded[: width - 1] + "…"
