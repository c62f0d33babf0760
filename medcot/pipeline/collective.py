"""Steps that every process carries out with its model: the main process broadcasts them.

A forward pass of a model with sharded weights gathers them from all processes, so no process can
do one alone. Where each process has the whole model, the processes share the work of an evaluation
instead (:mod:`medcot.pipeline.sharding`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from medcot.config.schema import RunConfig
from medcot.distributed import comm
from medcot.engines import loading as models
from medcot.engines.base import LoadedModel
from medcot.evaluation.batching import answer_batches
from medcot.evaluation.interface import AnswerBatches, ModelTools
from medcot.inference.generate import OnAnswering, model_tools, say_nothing
from medcot.pipeline.sharding import ShardedEvaluation, shard_evaluation
from medcot.planning.plan import Plan

MODEL_CALLS = ("generate", "score", "score_options")


@dataclass(frozen=True, slots=True)
class ModelCall:
    """One of ``MODEL_CALLS`` with its argument, for every process to repeat."""

    name: str
    argument: Any


@dataclass(frozen=True, slots=True)
class AdapterLoad:
    """The trained adapter in ``folder``, for every process to put on its model.

    Only the main process may see the folder when weights are sharded.
    """

    folder: str


Step = ModelCall | ShardedEvaluation | AdapterLoad | Literal["train"]


def broadcast_step(step: Step) -> None:
    """Send a step to the workers, just before the main process carries it out."""
    comm.broadcast(step)


def choose_answer(
    loaded: LoadedModel, phase: str, should_stop: Callable[[], bool]
) -> AnswerBatches:
    """Return how an evaluation's batches are answered: by this process, or by all in turn."""
    if comm.world_size() == 1 or loaded.engine.traits.splits:
        return answer_batches
    return shard_evaluation(broadcast_step, phase, should_stop)


def collective_tools(
    loaded: LoadedModel,
    config: RunConfig,
    should_stop: Callable[[], bool],
    on_answering: OnAnswering = say_nothing,
) -> ModelTools:
    """Return the callables by which evaluation knows the model, for the main process."""
    tools = model_tools(loaded, config, _stop_with_others(loaded, should_stop), on_answering)
    if not loaded.engine.traits.splits:
        return tools

    def in_all_processes(name: str) -> Callable[[Any], Any]:
        def call(argument: Any) -> Any:
            broadcast_step(ModelCall(name, argument))
            return getattr(tools, name)(argument)

        return call

    return replace(tools, **{name: in_all_processes(name) for name in MODEL_CALLS})


def repeat_call(
    call: ModelCall, loaded: LoadedModel, config: RunConfig, should_stop: Callable[[], bool]
) -> None:
    """Repeat in a worker what the main process calls; its result is dropped."""
    tools = model_tools(loaded, config, _stop_with_others(loaded, should_stop))
    getattr(tools, call.name)(call.argument)


def _stop_with_others(loaded: LoadedModel, should_stop: Callable[[], bool]) -> Callable[[], bool]:
    """Return ``should_stop``, true also where another process was asked to stop or failed.

    Sharded weights are used by all processes alike, so there it is a collective: all of them stop
    before the same pass.
    """
    if loaded.engine.traits.splits:
        return lambda: comm.any_rank(should_stop() or comm.stop_requested())
    return lambda: should_stop() or comm.stop_requested()


def load_adapter(loaded: LoadedModel, config: RunConfig, plan: Plan, folder: Path) -> None:
    """Put a trained adapter on the model, in all processes.

    Raises:
        InputError: There is no adapter, or it belongs to another model.
    """
    broadcast_step(AdapterLoad(str(folder.resolve())))
    models.load_adapter(loaded, config, plan, folder)


def load_adapter_in_worker(
    step: AdapterLoad, loaded: LoadedModel, config: RunConfig, plan: Plan
) -> None:
    """Do in a worker what the main process does in :func:`load_adapter`."""
    folder = None if loaded.engine.traits.splits else Path(step.folder)
    models.load_adapter(loaded, config, plan, folder)
