"""Shards an evaluation over processes, each of which has the whole model.

The processes take its batches in turn. A batch is answered exactly as one process would answer it,
so the rows are the same. The main process collects them and writes them in the order of batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from medcot.distributed import comm
from medcot.evaluation.batching import answer_batches
from medcot.evaluation.interface import AnswerBatches, EvaluationSuite, ModelTools, ScoredRow


@dataclass(frozen=True, slots=True)
class ShardedEvaluation:
    """What the workers need to answer their shards of an evaluation.

    Attributes:
        phase: Tells the evaluations of one run apart.
        answers_at_once: That of the main process, since batches depend on it.
        wanted: The batches to answer; rank r answers every ``world_size``-th, from the r-th on.
    """

    phase: str
    suite: EvaluationSuite
    answers_at_once: int
    wanted: tuple[int, ...]


def shard_evaluation(
    broadcast: Callable[[ShardedEvaluation], None], phase: str, should_stop: Callable[[], bool]
) -> AnswerBatches:
    """Return a function that answers the main process's shard and collects those of the workers."""

    def ask(
        suite: EvaluationSuite, tools: ModelTools, wanted: Sequence[int]
    ) -> Iterator[list[ScoredRow]]:
        sharded = ShardedEvaluation(phase, suite, tools.answers_at_once, tuple(wanted))
        if wanted:
            broadcast(sharded)
        own = answer_shard(sharded, tools)
        for place in range(len(wanted)):
            if place % comm.world_size() == 0:
                yield next(own)
            else:
                yield comm.collect(_name(sharded, place), should_stop)

    return ask


def submit_shard(
    sharded: ShardedEvaluation, tools: ModelTools, should_stop: Callable[[], bool]
) -> None:
    """Answer a worker's shard and submit each batch to the main process.

    Raises:
        Cancelled, RunFailed: Another process ended.
    """
    places = range(comm.rank(), len(sharded.wanted), comm.world_size())
    tools = replace(tools, answers_at_once=sharded.answers_at_once)
    for place, rows in zip(places, answer_shard(sharded, tools), strict=True):
        comm.submit(_name(sharded, place), rows)
        if error := comm.peer_error():
            raise error
        if should_stop():
            return


def answer_shard(sharded: ShardedEvaluation, tools: ModelTools) -> Iterator[list[ScoredRow]]:
    """Yield the rows of this process's batches, batch by batch."""
    own = sharded.wanted[comm.rank() :: comm.world_size()]
    return answer_batches(sharded.suite, tools, own)


def _name(sharded: ShardedEvaluation, place: int) -> str:
    return f"rows/{sharded.phase}/{place}"
