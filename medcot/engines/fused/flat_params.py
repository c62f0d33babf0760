"""Stores all trained parameters in one flat tensor, and their gradients in another.

The adapter of an 8B model is hundreds of small matrices. Updating, clipping, exchanging or zeroing
them one by one takes Python longer than the GPU; on a flat tensor each is one call. peft's own
parameters become views of it, so saving and loading work unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from medcot.engines.fused.lora_linear import LoraLinear
from medcot.engines.fused.loss_scale import LossScale
from medcot.engines.private_apis import foreach_copy_, foreach_mul_


class FlatParameters:
    """A and B of all ``linears`` as one float32 parameter. Created by :meth:`gather`."""

    def __init__(self, linears: Sequence[LoraLinear], loss_scale: LossScale | None = None) -> None:
        self.linears, self.loss_scale = linears, loss_scale
        self.parameters = [parameter for linear in linears for parameter in linear.parameters]
        self.sizes = [parameter.numel() for parameter in self.parameters]
        self._flat: torch.nn.Parameter | None = None
        self._gradient = torch.empty(0)
        self._values: list[torch.Tensor] = []
        self._gradients: list[torch.Tensor] = []
        self._compute_copies: list[torch.Tensor] = []
        self._sources: list[torch.Tensor] = []

    def gather(self) -> torch.nn.Parameter:
        """Return the flat parameter, of which the model's parameters are views from now on.

        A parameter whose data was replaced since the last call, as by loading a checkpoint, is
        copied in again.
        """
        if self._flat is None:
            device = self.parameters[0].device
            values, gradients = torch.zeros(2, sum(self.sizes), device=device)
            self._flat = torch.nn.Parameter(values)
            self._gradient = gradients
            self._values, self._gradients = self._views(values), self._views(gradients)
            self._distribute(values, gradients)
        for parameter, value in zip(self.parameters, self._values, strict=True):
            if parameter.data_ptr() != value.data_ptr():
                value.copy_(parameter.detach())
                parameter.data = value
        self._flat.grad = self._gradient
        return self._flat

    def begin_pass(self, *, for_backward: bool) -> None:
        """Refresh the copies in the compute dtype and, ``for_backward``, attach the gradients."""
        self.gather()
        with torch.no_grad():
            # Hundreds of small tensors: one call costs less than launching each from Python.
            foreach_copy_(self._compute_copies, self._sources)
            scaled = [linear.lora_a for linear in self.linears if linear.scaling != 1.0]
            if scaled:
                foreach_mul_(scaled, self.linears[0].scaling)
        if for_backward and self.parameters[0].grad is not self._gradients[0]:
            self._attach()

    def release(self) -> None:
        """Give each parameter and gradient a tensor of its own again; drop the linear layers."""
        for parameter in self.parameters:
            parameter.data = parameter.data.clone()
            if parameter.grad is not None:
                parameter.grad = parameter.grad.clone()
        self._flat, self._gradient = None, torch.empty(0)
        self._values, self._gradients, self._compute_copies, self._sources = [], [], [], []
        self.linears = []

    def _attach(self) -> None:
        """Make each gradient a view of the flat one; missing gradients start at zero."""
        if all(parameter.grad is None for parameter in self.parameters):
            self._gradient.zero_()
        for parameter, view in zip(self.parameters, self._gradients, strict=True):
            if parameter.grad is not None and parameter.grad is not view:
                view.copy_(parameter.grad)
            parameter.grad = view

    def _views(self, flat: torch.Tensor) -> list[torch.Tensor]:
        parts = flat.split(self.sizes)
        return [part.view_as(p) for part, p in zip(parts, self.parameters, strict=True)]

    def _distribute(self, values: torch.Tensor, gradients: torch.Tensor) -> None:
        """Give each linear layer its part of the gradients, and pair its copies with their source.

        A layer's part holds all A as one matrix, then each B.
        """
        self._compute_copies, self._sources, start = [], [], 0
        for linear in self.linears:
            count = len(linear.parameters) // 2
            all_a = torch.Size((count * linear.rank, linear.in_features))
            shapes = [all_a, *(lora_b.shape for lora_b in linear.parameters[count:])]
            sizes = [shape.numel() for shape in shapes]
            end = start + sum(sizes)
            own_values, own_gradients = (
                [
                    part.view(shape)
                    for part, shape in zip(flat[start:end].split(sizes), shapes, strict=True)
                ]
                for flat in (values, gradients)
            )
            linear.gradients = own_gradients
            self._compute_copies += linear.compute_copies
            self._sources += own_values
            start = end
