"""Generated answers as a page shows them: escaped, beside the reference, differences marked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import SequenceMatcher
from typing import Any

from medcot.catalog import say
from medcot.data.prompts import parse
from medcot.data.text import HAN
from medcot.notebook.views.markup import (
    card,
    columns,
    details,
    join,
    paragraph,
    paragraphs,
    prose,
    table,
    text,
    without_marks,
)
from medcot.records import Generation
from medcot.reporting.schema import Answer, ClaimFindings

LONGEST_DIFF = 1200
"""Words compared of each answer: the work grows with the square of it."""

_WORDS = re.compile(rf"[{HAN}]|\w+|\s+|[^\w\s]")


def disclaimer(language: str) -> str:
    """The line that stands wherever generated text is shown."""
    return f'<p class="mc-disclaimer">{text(say("not_medical_advice", language))}</p>'


def show_reply(reply: Answer | None, title: str, language: str) -> str:
    """One generated answer with its thought, and how it ended."""
    if reply is None:
        return card(title, paragraph(say("not_answered", language)))
    parts = [_state(reply, language)]
    parts.append(prose(_main_text(reply)))
    if reply.thought and reply.answer:
        parts.append(details(say("its_thought", language), prose(reply.thought)))
    return card(title, "".join(parts))


def compare_replies(before: Answer | None, after: Answer | None, language: str) -> str:
    """The base and the tuned answer side by side, with what each says alone marked."""
    if before is None or after is None:
        return columns(
            show_reply(before, say("base_answer", language), language),
            show_reply(after, say("tuned_answer", language), language),
        )
    left, right = mark_differences(
        without_marks(_main_text(before)), without_marks(_main_text(after))
    )
    return columns(
        card(say("base_answer", language), _state(before, language) + left),
        card(say("tuned_answer", language), _state(after, language) + right),
    )


def mark_differences(one: str, other: str) -> tuple[str, str]:
    """Both texts as HTML; what the other one does not have is marked."""
    mine, theirs = _words(one), _words(other)
    matcher = SequenceMatcher(a=mine, b=theirs, autojunk=False)
    left: list[str] = []
    right: list[str] = []
    for kind, a, b, c, d in matcher.get_opcodes():
        gone, new = text("".join(mine[a:b])), text("".join(theirs[c:d]))
        if kind == "equal":
            left.append(gone)
            right.append(new)
            continue
        left.append(f"<del>{gone}</del>" if gone.strip() else gone)
        right.append(f"<ins>{new}</ins>" if new.strip() else new)
    shown = (f'<div class="mc-text">{"".join(parts)}</div>' for parts in (left, right))
    return next(shown), next(shown)


def show_pair(
    pair: Sequence[Generation], question: str, language: str, *, thinks: bool = True
) -> str:
    """Show what the base and the tuned model made of one question."""
    asked = card(say("question", language), paragraphs(question))
    before, after = (_from_generation(one, thinks=thinks) for one in pair)
    return join(asked, compare_replies(before, after, language), disclaimer(language))


def _from_generation(generation: Generation, *, thinks: bool) -> Answer:
    reply = parse(generation.text, thinks=thinks)
    return Answer(reply.thought, reply.answer, reply.closed, generation.finished, generation.tokens)


def show_own_answer(reply: Mapping[str, Any], language: str) -> str:
    """Show the answer to a question of the reader's own, or under ``pair`` those of both models."""
    asked = card(say("question", language), paragraphs(reply["question"]))
    if "pair" in reply:
        before, after = map(_as_answer, reply["pair"])
        shown = compare_replies(before, after, language)
    else:
        title = say("base_answer" if reply["base"] else "tuned_answer", language)
        shown = show_reply(_as_answer(reply), title, language)
    return join(asked, shown, disclaimer(language))


def _as_answer(reply: Mapping[str, Any] | None) -> Answer | None:
    """Return a reply of a model as the record that pages show."""
    if reply is None:
        return None
    return Answer(**{field.name: reply[field.name] for field in fields(Answer)})


def show_claims(claims: ClaimFindings, language: str) -> str:
    """Tabulate what an answer must say, and what both answers say of it."""
    rows = [
        (text(b.claim), *(text(say(f"finding_{one.finding}", language)) for one in (b, a)))
        for b, a in zip(claims.before, claims.after, strict=True)
    ]
    headers = [say(key, language) for key in ("claim", "before", "after")]
    return table(headers, rows)


def _main_text(reply: Answer) -> str:
    """The answer, or the thought where no answer came."""
    return reply.answer or reply.thought


def _state(reply: Answer, language: str) -> str:
    """How the answer ended, where that is not as it should be."""
    lines: list[str] = []
    if not reply.finished:
        lines.append(say("cut_off", language, tokens=reply.tokens))
    if not reply.closed:
        lines.append(say("not_closed", language))
    return "".join(f'<p class="mc-state">{text(line)}</p>' for line in lines)


def _words(value: str) -> list[str]:
    return _WORDS.findall(value.strip())[:LONGEST_DIFF]
