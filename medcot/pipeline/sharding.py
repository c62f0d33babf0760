"""Shards an evaluation over processes that each hold the whole model.

Batches are dealt out in turn. Each is scored exactly as a single process would score it, so the
rows are the same; the main process receives and writes them in the order of the batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from medcot.distributed import comm
from medcot.evaluation.batching import answer_batches
from medcot.evaluation.interface import AnswerBatches, EvaluationSuite, ModelTools, ScoredRow


@dataclass(frozen=True, slots=True)
class Share:
    """What the other processes are told: the suite, and which of its batches are wanted.

    ``answers_at_once`` is the main process's, since batches depend on it; ``phase`` tells the two
    evaluations of a run apart.
    """

    phase: str
    suite: EvaluationSuite
    answers_at_once: int
    wanted: tuple[int, ...]


def share_out(
    tell: Callable[[Share], None], phase: str, should_stop: Callable[[], bool]
) -> AnswerBatches:
    """Return how the main process scores: its own batches itself, the others' by waiting."""

    def ask(
        suite: EvaluationSuite, tools: ModelTools, wanted: Sequence[int]
    ) -> Iterator[list[ScoredRow]]:
        share = Share(phase, suite, tools.answers_at_once, tuple(wanted))
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
    """Score this process's batches and hand them in.

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


def answer(share: Share, tools: ModelTools) -> Iterator[list[ScoredRow]]:
    """Score this process's batches, one after the other."""
    own = share.wanted[comm.rank() :: comm.world_size()]
    return answer_batches(share.suite, tools, own)


def _name(share: Share, place: int) -> str:
    return f"rows/{share.phase}/{place}"
