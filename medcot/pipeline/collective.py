"""What all processes do with their models: the main one says it, all do it.

A forward pass of a split model gathers its weights from all processes, so none can do one alone.
Where each has the whole model they share an evaluation's work (:mod:`medcot.pipeline.sharding`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from medcot.config.schema import RunConfig
from medcot.distributed import comm
from medcot.engines import loading as models
from medcot.evaluation.batching import answer_batches
from medcot.evaluation.interface import AnswerBatches, ModelTools
from medcot.inference.generate import model_tools
from medcot.pipeline.sharding import Share, share_out
from medcot.planning.plan import Plan

USES = ("generate", "score", "score_options")


@dataclass(frozen=True, slots=True)
class Use:
    """A use of the model in the evaluation: one of ``USES``, with what the main process asks."""

    name: str
    argument: Any


@dataclass(frozen=True, slots=True)
class Adapter:
    """Put the trained adapter in ``folder`` on the model; only the main process may see it."""

    folder: str


Step = Use | Share | Adapter | Literal["train"]


def is_split(loaded: models.LoadedModel) -> bool:
    """Whether all processes must use the model alike."""
    return loaded.engine.traits.splits


def announce(step: Step) -> None:
    """Tell the other processes what to do with their model, just before doing it."""
    comm.tell(step)


def ask_of(
    loaded: models.LoadedModel, phase: str, should_stop: Callable[[], bool]
) -> AnswerBatches:
    """Choose who scores an evaluation's batches: this process alone, or each process its share."""
    if comm.world_size() == 1 or is_split(loaded):
        return answer_batches
    return share_out(announce, phase, should_stop)


def tools_of(loaded: models.LoadedModel, config: RunConfig) -> ModelTools:
    """The callables that evaluation knows the model by, in the main process."""
    tools = model_tools(loaded, config)
    if not is_split(loaded):
        return tools

    def announced(name: str) -> Callable[[Any], Any]:
        def call(argument: Any) -> Any:
            announce(Use(name, argument))
            return getattr(tools, name)(argument)

        return call

    return replace(tools, **{name: announced(name) for name in USES})


def use_alike(use: Use, loaded: models.LoadedModel, config: RunConfig) -> None:
    """What the main process does in :func:`tools_of`, in the others; they keep nothing of it."""
    getattr(model_tools(loaded, config), use.name)(use.argument)


def load_adapter(loaded: models.LoadedModel, config: RunConfig, plan: Plan, folder: Path) -> None:
    """Put a trained adapter on the model, in all processes.

    Raises:
        InputError: there is no adapter, or it belongs to another model.
    """
    announce(Adapter(str(folder.resolve())))
    models.load_adapter(loaded, config, plan, folder)


def load_adapter_too(
    step: Adapter, loaded: models.LoadedModel, config: RunConfig, plan: Plan
) -> None:
    """What the main process does in :func:`load_adapter`, in the others."""
    models.load_adapter(loaded, config, plan, None if is_split(loaded) else Path(step.folder))
