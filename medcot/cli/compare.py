"""Shows two answers side by side on a terminal, one after the other elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from medcot.comparing.answers import TwoReplies
from medcot.comparing.sides import Side
from medcot.inference.ask import StreamedReply
from medcot.runs.environment import NOT_MEDICAL_ADVICE
from medcot.terminal import escape_controls, say, write

NARROWEST = 80
"""Columns of a terminal below which two answers side by side could not be read."""


def show_replies(replies: Iterator[TwoReplies], sides: tuple[Side, Side], console: Console) -> None:
    """Show both replies while they grow, and as a whole in the end."""
    if console.is_terminal and console.width >= NARROWEST:
        _show_beside(replies, sides, console)
    else:
        for piece in write_replies(replies, sides):
            write(piece)
    say()
    say(NOT_MEDICAL_ADVICE)


def write_replies(replies: Iterator[TwoReplies], sides: tuple[Side, Side]) -> Iterator[str]:
    """Turn the growing replies into pieces of text, one reply under the other."""
    told = ["", ""]
    begun = -1
    for grown in replies:
        for at, reply in enumerate((grown.first, grown.second)):
            if reply is None:
                continue
            if at > begun:
                begun = at
                yield f"{'' if at == 0 else chr(10) * 2}{sides[at].label}\n{'=' * 20}\n"
            whole = _as_text(reply)
            if whole.startswith(told[at]):
                yield whole[len(told[at]) :]
                told[at] = whole
    yield "\n"


def _show_beside(replies: Iterator[TwoReplies], sides: tuple[Side, Side], console: Console) -> None:
    last = TwoReplies()
    with Live(console=console, transient=True, refresh_per_second=8) as live:
        for last in replies:
            # What does not fit would be cut off below, where the answers grow.
            live.update(_beside(last, sides, lines=max(4, console.height - 4), width=console.width))
    console.print(_beside(last, sides))


def _beside(
    shown: TwoReplies, sides: tuple[Side, Side], *, lines: int | None = None, width: int = 0
) -> Table:
    table = Table(expand=True)
    cells: list[Group] = []
    for side, reply in zip(sides, (shown.first, shown.second), strict=True):
        table.add_column(Text(escape_controls(side.label)), ratio=1, overflow="fold")
        whole = escape_controls(_as_text(reply)) if reply else "…"
        if lines is not None:
            whole = _last_lines(whole, lines, max(10, width // 2 - 4))
        cells.append(Group(Text(whole)))
    table.add_row(*cells)
    return table


def _last_lines(text: str, lines: int, width: int) -> str:
    """Return about the last ``lines`` lines of a text that is folded at ``width``."""
    folded = [
        line[at : at + width]
        for line in text.split("\n")
        for at in range(0, max(1, len(line)), width)
    ]
    return "\n".join(folded[-lines:])


def _as_text(reply: StreamedReply) -> str:
    """Return thought and answer; only the last reply of a side can be known to be cut off."""
    parts = [f"Thought\n-------\n{reply.thought}"]
    if reply.closed:
        parts.append(f"Answer\n------\n{reply.answer}")
    elif not reply.finished:
        parts.append(f"(no answer: the thought was not closed within {reply.limit} tokens)")
    return "\n\n".join(parts)
