"""Undoes an optimizer step whose gradient was not finite, without waiting for the device."""

from __future__ import annotations

from typing import Any

import torch


class OptimizerGuard:
    """Makes a step of ``optimizer`` change nothing where ``finite`` is false on the device.

    Weights and moments are copied before the step, and the device chooses between copy and result.
    Counts of steps that live on the host are set back by :meth:`forget_step`, once the host has
    read that the step was undone, and before the next one.
    """

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self.finite: torch.Tensor | None = None
        """Whether the gradient of the step in progress is finite: a boolean scalar."""
        self._copies: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._made_state = False
        optimizer.register_step_pre_hook(self._copy)
        optimizer.register_step_post_hook(self._choose)

    def forget_step(self) -> None:
        """Take back what the host counted of the step that was undone."""
        if self._made_state:
            self._optimizer.state.clear()
            return
        for parameter, state in self._optimizer.state.items():
            steps = state.get("step")
            if isinstance(steps, int):
                state["step"] = steps - 1
            elif steps is not None and steps.device != parameter.device:
                steps -= 1

    def _copy(self, *_: Any) -> None:
        self._made_state = not self._optimizer.state
        self._copies = [(tensor, tensor.detach().clone()) for tensor in self._tensors()]

    def _choose(self, *_: Any) -> None:
        assert self.finite is not None
        with torch.no_grad():
            for tensor, copy in self._copies:
                torch.where(self.finite, tensor, copy, out=tensor)
        self._copies = []

    def _tensors(self) -> list[torch.Tensor]:
        """Return the weights, and the moments that lie on the same device as they do."""
        found: list[torch.Tensor] = []
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                state = self._optimizer.state.get(parameter, {})
                moments = [one for one in state.values() if isinstance(one, torch.Tensor)]
                found += [parameter.data]
                found += [one for one in moments if one.device == parameter.device]
        return found
