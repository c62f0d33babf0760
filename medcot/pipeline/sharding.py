"""An examination that several processes answer, each with the whole model.

They take the groups in turn. A group is answered exactly as one process would answer it, so the
rows are the same; the main process gets and writes them in the order of the groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from medcot.distributed import comm
from medcot.evaluation.batching import ask_groups
from medcot.evaluation.interface import Ask, Examination, ModelTools, Row


@dataclass(frozen=True, slots=True)
class Share:
    """What the other processes are told: the examination, and which of its groups are asked.

    ``answers_at_once`` is the main process's, since groups depend on it; ``phase`` tells one
    examination of a run from the other.
    """

    phase: str
    examination: Examination
    answers_at_once: int
    wanted: tuple[int, ...]


def share_out(tell: Callable[[Share], None], phase: str, should_stop: Callable[[], bool]) -> Ask:
    """How the main process asks: its own groups itself, for the others' it waits."""

    def ask(
        examination: Examination, tools: ModelTools, wanted: Sequence[int]
    ) -> Iterator[list[Row]]:
        share = Share(phase, examination, tools.answers_at_once, tuple(wanted))
        if wanted:
            tell(share)
        own = answer(share, tools)
        for place in range(len(wanted)):
            if place % comm.world_size() == 0:
                yield next(own)
            else:
                yield comm.take(_name(share, place), should_stop)

    return ask


def take_share(share: Share, tools: ModelTools, should_stop: Callable[[], bool]) -> None:
    """Answer this process's groups and hand them in.

    Raises:
        Cancelled, RunFailed: another process ended.
    """
    places = range(comm.rank(), len(share.wanted), comm.world_size())
    tools = replace(tools, answers_at_once=share.answers_at_once)
    for place, rows in zip(places, answer(share, tools), strict=True):
        comm.hand_in(_name(share, place), rows)
        if error := comm.error_elsewhere():
            raise error
        if should_stop():
            return


def answer(share: Share, tools: ModelTools) -> Iterator[list[Row]]:
    """The rows of this process's groups, one after the other."""
    own = share.wanted[comm.rank() :: comm.world_size()]
    return ask_groups(share.examination, tools, own)


def _name(share: Share, place: int) -> str:
    return f"rows/{share.phase}/{place}"
