"""What is trained, laid end to end: one tensor of parameters, one of gradients.

An adapter of an 8B model is hundreds of small matrices. To update, clip, exchange or zero them one
by one takes Python longer than the GPU; as one tensor it takes a call each. The model's own
parameters are views of it, so saving, loading and whoever else looks at them notice nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from medcot.engines.fused.lora_linear import Group


class Adapters:
    """A and B of all ``groups`` in float32: ``master`` (what an optimizer updates), with its
    gradient beside it. Nothing is laid together before :meth:`gather`."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = groups
        self.parameters = [parameter for group in groups for parameter in group.parameters]
        self.sizes = [parameter.numel() for parameter in self.parameters]
        self._master: torch.nn.Parameter | None = None
        self._gradient = torch.empty(0)
        self._values: list[torch.Tensor] = []
        self._gradients: list[torch.Tensor] = []
        self._copies: list[torch.Tensor] = []
        self._masters: list[torch.Tensor] = []

    def gather(self) -> torch.nn.Parameter:
        """All parameters end to end; their own tensors are views of it from now on."""
        if self._master is None:
            device = self.parameters[0].device
            values, gradients = torch.zeros(2, sum(self.sizes), device=device)
            self._master = torch.nn.Parameter(values)
            self._gradient = gradients
            self._values, self._gradients = self._views(values), self._views(gradients)
            self._hand_out(values, gradients)
        for parameter, value in zip(self.parameters, self._values, strict=True):
            if parameter.data_ptr() != value.data_ptr():
                value.copy_(parameter.detach())
                parameter.data = value
        self._master.grad = self._gradient
        return self._master

    def open(self, for_backward: bool) -> None:
        """Before a pass: what the products read is as the parameters are, gradients are there."""
        self.gather()
        with torch.no_grad():
            # Hundreds of small tensors: one call costs less than launching each from Python.
            torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
                self._copies, self._masters
            )
            scaled = [group.down for group in self.groups if group.scaling != 1.0]
            if scaled:
                torch._foreach_mul_(scaled, self.groups[0].scaling)  # pyright: ignore[reportPrivateImportUsage]
        if for_backward and self.parameters[0].grad is not self._gradients[0]:
            self._attach()

    def release(self) -> None:
        """Give every parameter a tensor of its own again, and its gradient; forget the groups."""
        for parameter in self.parameters:
            parameter.data = parameter.data.clone()
            if parameter.grad is not None:
                parameter.grad = parameter.grad.clone()
        self._master, self._gradient = None, torch.empty(0)
        self._values, self._gradients, self._copies, self._masters = [], [], [], []
        self.groups = []

    def _attach(self) -> None:
        """Parameters without a gradient begin at zero, as ``zero_grad`` left them."""
        if all(parameter.grad is None for parameter in self.parameters):
            self._gradient.zero_()
        for parameter, view in zip(self.parameters, self._gradients, strict=True):
            if parameter.grad is not None and parameter.grad is not view:
                view.copy_(parameter.grad)
            parameter.grad = view

    def _views(self, together: torch.Tensor) -> list[torch.Tensor]:
        parts = together.split(self.sizes)
        return [part.view_as(p) for part, p in zip(parts, self.parameters, strict=True)]

    def _hand_out(self, values: torch.Tensor, gradients: torch.Tensor) -> None:
        """Tell each group where its part lies: all A first, then each B."""
        self._copies, self._masters, start = [], [], 0
        for group in self.groups:
            count = len(group.parameters) // 2
            shape = (count * group.rank, group.width)
            size = shape[0] * shape[1]
            ups = [parameter.shape for parameter in group.parameters[count:]]
            sizes = [size, *(up.numel() for up in ups)]
            end = start + sum(sizes)
            value, gradient = (
                [
                    part.view(size)
                    for part, size in zip(one[start:end].split(sizes), [shape, *ups], strict=True)
                ]
                for one in (values, gradients)
            )
            group.gradients = gradient
            self._copies += group.copies
            self._masters += value
            start = end
