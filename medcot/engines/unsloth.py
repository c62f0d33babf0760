"""The unsloth engine: one CUDA GPU per process. Optional (parts of unsloth are AGPL-3.0)."""

from __future__ import annotations

from typing import Any

from medcot.config.schema import RunConfig
from medcot.engines.base import LoadedModel, Location, settle_pad_token
from medcot.engines.compat import disable_unsloth_statistics
from medcot.engines.hf import HfEngine, dtype_of, list_targets
from medcot.errors import InputError
from medcot.planning.engine_traits import TRAITS
from medcot.planning.plan import Plan


class UnslothEngine(HfEngine):
    """Trains and answers through the modules that unsloth puts in place of transformers'."""

    traits = TRAITS["unsloth"]

    def prepare_process(self) -> None:
        """Import unsloth before transformers, trl and peft, which it patches.

        Raises:
            InputError: It is not installed.
        """
        disable_unsloth_statistics()
        try:
            import unsloth  # noqa: F401
        except ImportError as error:
            raise InputError(
                "--engine unsloth",
                "unsloth is not installed",
                "run pip install 'medcot[gpu]' or use --engine transformers",
            ) from error

    def load_base(self, config: RunConfig, plan: Plan, where: Location) -> LoadedModel:
        """Load the model through ``FastLanguageModel``."""
        self.prepare_process()
        from unsloth import FastLanguageModel  # pyright: ignore[reportAttributeAccessIssue]

        model, tokenizer = FastLanguageModel.from_pretrained(
            model_name=where.source,
            max_seq_length=config.max_length + config.max_new_tokens,
            dtype=dtype_of(plan),
            load_in_4bit=plan.quantization == "4bit",
            load_in_8bit=plan.quantization == "8bit",
            **where.options,
        )
        settle_pad_token(tokenizer)
        # Training pads on the right; generation chooses its own side.
        tokenizer.padding_side = "right"
        FastLanguageModel.for_inference(model)
        return LoadedModel(model, tokenizer, self, "cuda", plan.answer_rows)

    def add_adapter(self, loaded: LoadedModel, config: RunConfig, plan: Plan) -> Any:
        """Return a peft model with a fresh adapter and unsloth's kernels on it."""
        from unsloth import FastLanguageModel  # pyright: ignore[reportAttributeAccessIssue]

        FastLanguageModel.for_training(loaded.model)
        return FastLanguageModel.get_peft_model(
            loaded.model,
            r=config.rank,
            target_modules=list_targets(loaded.model, config),
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            bias="none",
            use_gradient_checkpointing="unsloth" if plan.checkpointing else False,
            random_state=config.seed,
            use_rslora=False,
            loftq_config=None,
            max_seq_length=config.max_length,
        )
