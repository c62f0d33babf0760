"""What all processes do alike with a model that is split: the main one says it, all do it.

A forward pass of a split model gathers its weights from all processes, so none can do one alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from medcot import model as models
from medcot import processes
from medcot.config import RunConfig
from medcot.errors import InputError, one_line
from medcot.evaluation import ModelTools
from medcot.inference import model_tools
from medcot.plan import Plan

USES = ("generate", "score", "score_options")


@dataclass(frozen=True, slots=True)
class Use:
    """A use of the model in the evaluation: one of ``USES``, with what the main process asks."""

    name: str
    argument: Any


Step = Use | Literal["train", "adapter"]


def is_split(loaded: models.LoadedModel) -> bool:
    """Whether all processes must use the model alike."""
    return loaded.engine == "split"


def announce(loaded: models.LoadedModel, step: Step) -> None:
    """Tell the other processes what to do with their part of the model, just before doing it."""
    if is_split(loaded):
        processes.tell(step)


def tools_of(loaded: models.LoadedModel, config: RunConfig) -> ModelTools:
    """The callables that evaluation knows the model by, in the main process."""
    tools = model_tools(loaded, config)
    if not is_split(loaded):
        return tools

    def announced(name: str) -> Callable[[Any], Any]:
        def call(argument: Any) -> Any:
            announce(loaded, Use(name, argument))
            return getattr(tools, name)(argument)

        return call

    return replace(tools, **{name: announced(name) for name in USES})


def use_alike(use: Use, loaded: models.LoadedModel, config: RunConfig) -> None:
    """What the main process does in :func:`tools_of`, in the others; they keep nothing of it."""
    getattr(model_tools(loaded, config), use.name)(use.argument)


def load_adapter(
    loaded: models.LoadedModel, config: RunConfig, plan: Plan, folder: Path | None
) -> None:
    """Put a trained adapter on the model. ``folder`` is None in the processes beside the main one.

    Raises:
        InputError: there is no adapter, or it belongs to another model.
    """
    if not is_split(loaded):
        assert folder is not None
        models.load_adapter(loaded, folder)
        return
    from medcot.engines.split import read_adapter

    announce(loaded, "adapter") if folder is not None else None
    try:
        loaded.model = read_adapter(loaded, config, plan, folder)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError("--run", one_line(str(error)), "an adapter of this model") from error
