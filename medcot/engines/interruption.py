"""Lets a pass of a model be interrupted: on a CPU a long row takes a minute and more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from medcot.engines.base import LoadedModel


@contextmanager
def interruptible(loaded: LoadedModel, poll: Callable[[], None]) -> Iterator[None]:
    """Call ``poll`` at every layer of the model's passes, forward and backward.

    What ``poll`` raises ends the pass. Nothing is done on a GPU, where a pass takes under a second,
    and where weights are split: there, all processes must end before the same pass.
    """
    with ExitStack() as hooks:
        if loaded.device == "cpu" and not loaded.engine.traits.splits:
            for layer in _list_layers(loaded.model):
                handle = layer.register_forward_pre_hook(_poll_at_layer(poll))
                hooks.callback(handle.remove)
        yield


def _list_layers(model: nn.Module) -> list[nn.Module]:
    from torch import nn

    return [one for part in model.modules() if isinstance(part, nn.ModuleList) for one in part]


def _poll_at_layer(poll: Callable[[], None]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def at_gradient(_: Any) -> None:
        poll()

    def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        poll()
        for one in inputs:
            if getattr(one, "requires_grad", False):
                one.register_hook(at_gradient)

    return hook
