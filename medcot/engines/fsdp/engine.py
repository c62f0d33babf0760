"""The engine for frozen weights that are split over processes (FSDP2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medcot.config.schema import RunConfig
from medcot.engines.base import LoadedModel, Location, settle_pad_token
from medcot.engines.compat import keep_accelerate_from_splitting
from medcot.engines.hf import HfEngine, current_device, dtype_of
from medcot.planning.engine_traits import SPLIT_TRAITS
from medcot.planning.plan import Plan


class FsdpEngine(HfEngine):
    """Trains and answers in all processes at once; adapters are whole in each of them."""

    traits = SPLIT_TRAITS

    def load_base(self, config: RunConfig, plan: Plan, where: Location) -> LoadedModel:
        """Load this process's part of the model, in the plan's precision, on the plan's device.

        Raises:
            OSError, KeyError: Files or tensors are missing.
        """
        import torch
        from transformers import AutoConfig, AutoTokenizer

        from medcot.engines.fsdp.model import build_split
        from medcot.engines.fsdp.safetensors_reader import Checkpoint

        tokenizer = AutoTokenizer.from_pretrained(where.source, **where.options)
        settle_pad_token(tokenizer)
        shape = AutoConfig.from_pretrained(where.source, **where.options)
        device = torch.device(current_device(plan))
        keep_accelerate_from_splitting()
        model = build_split(shape, Checkpoint(where), plan, dtype_of(plan), device)
        model.config.pad_token_id = tokenizer.pad_token_id
        return LoadedModel(model, tokenizer, self, plan.device, plan.answer_rows)

    def add_adapter(self, loaded: LoadedModel, config: RunConfig, plan: Plan) -> Any:
        """Return a peft model with a fresh adapter in float32, the same in every process."""
        from medcot.engines.fsdp.model import broadcast_adapter

        model = super().add_adapter(loaded, config, plan)
        broadcast_adapter(model)
        return model

    def read_adapter(
        self, loaded: LoadedModel, config: RunConfig, plan: Plan, folder: Path | None
    ) -> Any:
        """Return a peft model with the adapter in ``folder``, which only the main process reads.

        Raises:
            OSError, RuntimeError, ValueError: There is no adapter, or not one of this model.
        """
        from peft import set_peft_model_state_dict
        from peft.utils import load_peft_weights

        from medcot.engines.fsdp.model import broadcast_adapter

        model = super().add_adapter(loaded, config, plan)
        if folder is not None:
            stored = load_peft_weights(str(folder), device=current_device(plan))
            set_peft_model_state_dict(model, stored)
        broadcast_adapter(model)
        return model.eval()
