"""Scales fp16 losses by a factor that the device itself adjusts, so that no step waits for it."""

from __future__ import annotations

import torch

LARGEST_SCALE = 4096.0
"""Factor of the loss in a backward pass in fp16, whose smallest number is 6e-8. The loss of a step
is a mean over thousands of tokens, so this brings the gradient of one token to the order of 1, far
below the largest number, 65504."""
GROWTH_STEPS = 20
"""Steps without an overflow after which a halved scale doubles. ``GradScaler`` waits for 2,000,
more than a fine-tuning has; a scale that is too large again costs one skipped step."""


class LossScale:
    """The factor of the loss, as a tensor on the ``device`` of the gradients.

    A gradient that is not finite halves it; :data:`GROWTH_STEPS` finite ones in a row double it, up
    to :data:`LARGEST_SCALE`. All values are powers of two, so scaling rounds nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self.value = torch.full((), LARGEST_SCALE, device=device)
        self.inverse = 1 / self.value
        self._finite_steps = torch.zeros((), device=device)

    def update(self, finite: torch.Tensor) -> None:
        """Adjust the scale after a step whose gradient was ``finite`` (a boolean scalar)."""
        counted = torch.where(finite, self._finite_steps + 1, 0.0)
        grows = counted >= GROWTH_STEPS
        raised = torch.where(grows, self.value * 2, self.value).clamp(max=LARGEST_SCALE)
        self.value.copy_(torch.where(finite, raised, self.value / 2))
        self.inverse.copy_(1 / self.value)
        self._finite_steps.copy_(torch.where(grows, 0.0, counted))

    def state(self) -> dict[str, float]:
        """Return what :meth:`restore` needs; reads from the device."""
        return {"scale": self.value.item(), "finite_steps": self._finite_steps.item()}

    def restore(self, state: dict[str, float]) -> None:
        """Continue from a :meth:`state` of an earlier session."""
        self.value.fill_(state["scale"])
        self.inverse.copy_(1 / self.value)
        self._finite_steps.fill_(state["finite_steps"])
