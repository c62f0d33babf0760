"""unsloth: one CUDA GPU per process. Optional (parts of it are AGPL-3.0)."""

from __future__ import annotations

import os
from typing import Any

from medcot.config.schema import TARGET_MODULES, RunConfig
from medcot.engines.base import LoadedModel, Location, settle_pad_token
from medcot.errors import InputError
from medcot.planning.plan import Plan


def prepare_process() -> None:
    """Import unsloth before transformers, trl and peft, which it patches.

    Raises:
        InputError: it is not installed.
    """
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    try:
        import unsloth  # noqa: F401
    except ImportError as error:
        raise InputError(
            "--engine unsloth",
            "unsloth is not installed",
            "run pip install 'medcot[gpu]' or use --engine transformers",
        ) from error


def load_base(config: RunConfig, plan: Plan, where: Location) -> LoadedModel:
    """Load the model through ``FastLanguageModel``."""
    prepare_process()
    import torch
    from unsloth import FastLanguageModel  # pyright: ignore[reportAttributeAccessIssue]

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[plan.precision]
    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=where.source,
        max_seq_length=config.max_length + config.max_new_tokens,
        dtype=dtype,
        load_in_4bit=plan.quantization == "4bit",
        load_in_8bit=plan.quantization == "8bit",
        **where.options,
        trust_remote_code=False,
    )
    settle_pad_token(tokenizer)
    # Training pads on the right; generation chooses its own side.
    tokenizer.padding_side = "right"
    FastLanguageModel.for_inference(model)
    return LoadedModel(model, tokenizer, "unsloth", "cuda", plan.answer_rows)


def add_adapter(loaded: LoadedModel, config: RunConfig, plan: Plan) -> Any:
    """A peft model with a fresh adapter and unsloth's kernels on it."""
    from unsloth import FastLanguageModel  # pyright: ignore[reportAttributeAccessIssue]

    FastLanguageModel.for_training(loaded.model)
    return FastLanguageModel.get_peft_model(
        loaded.model,
        r=config.rank,
        target_modules=list(TARGET_MODULES),
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        bias="none",
        use_gradient_checkpointing="unsloth" if plan.checkpointing else False,
        random_state=config.seed,
        use_rslora=False,
        loftq_config=None,
        max_seq_length=config.max_length,
    )
