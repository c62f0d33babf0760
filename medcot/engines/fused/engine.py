"""The fused engine: transformers and peft, with medcot's own training pass for Llama-like models.

The model is the one that :mod:`medcot.engines.hf` loads and stays whole: generation, scoring and
saving use its own modules. Training alone runs packed rows through
:mod:`medcot.engines.fused.decoder_layer`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from medcot.config.schema import RunConfig
from medcot.engines.base import LoadedModel, Location, TrainedParameters
from medcot.engines.compat import let_allocator_grow, unhurried_optimizer
from medcot.engines.hf import HfEngine
from medcot.planning.engine_traits import TRAITS
from medcot.planning.plan import Plan


class FusedEngine(HfEngine):
    """Trains through :func:`medcot.engines.fused.stack.fused_forward`."""

    traits = TRAITS["fused"]

    def prepare_process(self) -> None:
        """Let CUDA's allocator grow its blocks, before it makes the first one."""
        let_allocator_grow()

    def load_base(self, config: RunConfig, plan: Plan, where: Location) -> LoadedModel:
        """Load the model as the plain engine does."""
        self.prepare_process()
        return super().load_base(config, plan, where)

    def add_adapter(self, loaded: LoadedModel, config: RunConfig, plan: Plan) -> Any:
        """Return a peft model with the adapter that the plain engine makes for the same seed."""
        # Recomputation starts from hidden states here, so the embeddings need no gradient.
        return super().add_adapter(loaded, config, replace(plan, checkpointing=False))

    @contextmanager
    def training_pass(self, loaded: LoadedModel, plan: Plan) -> Iterator[TrainedParameters | None]:
        """Exchange the model's forward pass for the fused one; yield its flat parameters."""
        from medcot.engines.fused.stack import fused_forward

        fp8 = plan.quantization == "fp8"
        forward = fused_forward(loaded.model, plan.recomputed_layers, fp8=fp8)
        with forward as stack, unhurried_optimizer():
            yield stack.adapters
