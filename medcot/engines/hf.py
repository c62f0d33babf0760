"""The plain engine: transformers and peft, on any device, for any causal language model."""

from __future__ import annotations

import os
import re
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from medcot.config.schema import RunConfig, read_target_modules
from medcot.engines.base import LoadedModel, Location, TrainedParameters, settle_pad_token
from medcot.engines.imports import collector_paused
from medcot.planning.architecture import list_text_linears, list_towers
from medcot.planning.engine_traits import TRAITS
from medcot.planning.plan import Plan


class HfEngine:
    """Trains and answers through the model's own modules."""

    traits = TRAITS["transformers"]

    def prepare_process(self) -> None:
        """Do nothing: transformers may be imported at any time."""

    def load_base(self, config: RunConfig, plan: Plan, where: Location) -> LoadedModel:
        """Load the model in the plan's precision on the plan's device, from safetensors only."""
        with collector_paused():
            import peft  # noqa: F401 - for the adapter
            from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(where.source, **where.options)
        settle_pad_token(tokenizer)
        dtype = dtype_of(plan)
        model = AutoModelForCausalLM.from_pretrained(
            where.source,
            **where.options,
            dtype=dtype,
            use_safetensors=True,
            attn_implementation=plan.attention,
            quantization_config=_quantization(plan, dtype),
            device_map=None if plan.device == "cpu" else {"": current_device(plan)},
        )
        model.config.pad_token_id = tokenizer.pad_token_id
        if plan.quantization == "4bit":
            compute_in(dtype, model)
        return LoadedModel(model.eval(), tokenizer, self, plan.device, plan.answer_rows)

    def add_adapter(self, loaded: LoadedModel, config: RunConfig, plan: Plan) -> Any:
        """Return a peft model with a fresh adapter in float32, the same for the same seed."""
        from peft import get_peft_model
        from transformers import set_seed

        set_seed(config.seed)
        if plan.checkpointing:
            # The frozen embeddings give no gradient to recompute from; this makes their output
            # have one.
            loaded.model.enable_input_require_grads()
        return get_peft_model(loaded.model, make_lora_config(loaded.model, config))

    def read_adapter(
        self, loaded: LoadedModel, config: RunConfig, plan: Plan, folder: Path | None
    ) -> Any:
        """Return a peft model with the adapter in ``folder``, ready for inference.

        Raises:
            RuntimeError, ValueError: The adapter belongs to another model.
        """
        from peft import PeftModel

        return PeftModel.from_pretrained(loaded.model, str(folder)).eval()

    def training_pass(
        self, loaded: LoadedModel, plan: Plan
    ) -> AbstractContextManager[TrainedParameters | None]:
        """Leave the model's forward pass as it is."""
        return nullcontext()


def make_lora_config(model: Any, config: RunConfig) -> Any:
    """Return peft's ``LoraConfig`` of a run for ``model``."""
    from peft import LoraConfig

    return LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list_targets(model, config),
        exclude_modules=_exclude_towers(model),
        # GPT-2's layers keep their weights the other way round.
        fan_in_fan_out=any(type(one).__name__ == "Conv1D" for one in model.modules()),
        bias="none",
        task_type="CAUSAL_LM",
    )


def list_targets(model: Any, config: RunConfig) -> list[str]:
    """Return the names of the layers that get LoRA: the config's, else all of the text part."""
    asked = read_target_modules(config.target_modules)
    return list(asked or dict.fromkeys(one.name for one in list_text_linears(model)))


def _exclude_towers(model: Any) -> str | None:
    """Return a pattern of the modules that read no text, None where there are none.

    Their layers often have the names of the text part's.
    """
    towers = list_towers(model)
    return rf"(.*\.)?({'|'.join(map(re.escape, towers))})(\..*)?" if towers else None


def current_device(plan: Plan) -> str:
    """Return this process's accelerator: one per process under a launcher, else the first."""
    if plan.device != "cuda":
        return plan.device
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


def dtype_of(plan: Plan) -> Any:
    """Return the torch dtype of the plan's precision."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[plan.precision]


def compute_in(dtype: Any, model: Any) -> None:
    """Let ``model``'s 4-bit layers dequantize to ``dtype``.

    A repository that was quantized before names a dtype of its own, often bfloat16. A T4 only
    emulates that, and the fused pass could not dequantize its layers in one launch.
    """
    for module in model.modules():
        if type(module).__name__ != "Linear4bit":
            continue
        module.compute_dtype = dtype
        module.compute_type_is_set = True
        if module.weight.quant_state is not None:
            module.weight.quant_state.dtype = dtype


def _quantization(plan: Plan, dtype: Any) -> Any:
    if plan.quantization in ("none", "fp8"):
        return None
    from transformers import BitsAndBytesConfig

    if plan.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
