"""The model: load it, give it an adapter, hand its memory back. Quirks are in ``engines``."""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from medcot.config.schema import BUNDLED_MODEL, RunConfig
from medcot.data.hub import explain_hub_error, find_commit
from medcot.engines.base import LoadedModel, Location, settle_pad_token
from medcot.engines.bundled_model import bundled_model
from medcot.engines.compat import deny_jupyter
from medcot.errors import InputError, RunFailed, one_line
from medcot.hardware.machine import Machine
from medcot.planning.constraints import settle_ground
from medcot.planning.model_specs import model_shape
from medcot.planning.plan import Plan


@cache
def locate(model: str, revision: str = "") -> Location:
    """Find a model: bundled, a folder, or a commit on the hub.

    Raises:
        InputError: neither a folder nor on the hub.
    """
    if model == BUNDLED_MODEL:
        return Location(str(bundled_model()), cached=True)
    if Path(model).exists():
        return Location(model, cached=True)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model):
        needs = f"expected an existing folder, a hub name (owner/model) or {BUNDLED_MODEL}"
        raise InputError("--model", f"found {model!r}", needs)
    try:
        commit = find_commit(model, revision, "model")
    except (OSError, ValueError) as error:
        raise explain_hub_error(error, f"--model {model}", "model") from None
    if not commit and not _is_cached(model, revision):
        needs = "use a local folder or --preset demo, which need no network"
        raise InputError(f"--model {model}", "no connection to the hub", needs)
    return Location(model, commit or revision or None, cached=not commit)


def _is_cached(model: str, revision: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(model, "config.json", revision=revision or None), str)


def prepare_engine(config: RunConfig, machine: Machine) -> None:
    """Import what must come before transformers is: unsloth patches the libraries it finds."""
    engine = settle_ground(config, machine, model_shape(config)).engine
    if engine in ("unsloth", "fused"):
        _engine(engine).prepare_process()


def load_tokenizer(config: RunConfig) -> Any:
    """The tokenizer of the model, with a pad token that is not EOS.

    Raises:
        InputError: no such model, or it has no tokenizer.
    """
    with _readable_errors(config):
        from transformers import AutoTokenizer

        where = locate(config.model, config.model_revision)
        tokenizer = AutoTokenizer.from_pretrained(where.source, **where.options)
    settle_pad_token(tokenizer)
    return tokenizer


def load_base(config: RunConfig, plan: Plan) -> LoadedModel:
    """Load the untuned model as the plan says.

    Raises:
        InputError: the model does not exist, may not be read or is no causal language model.
        RunFailed: it does not fit into memory.
    """
    from medcot.data.tokenization import chat_template

    with _readable_errors(config):
        from transformers.utils import logging

        logging.disable_progress_bar()
        loaded = _engine("split" if plan.split else plan.engine).load_base(
            config, plan, locate(config.model, config.model_revision)
        )
    loaded.chat = chat_template(loaded.tokenizer)
    return loaded


def add_adapter(loaded: LoadedModel, config: RunConfig, plan: Plan) -> None:
    """Put a new LoRA adapter on the model; it changes nothing until it is trained."""
    loaded.model = _engine(loaded.engine).add_adapter(loaded, config, plan)


def load_adapter(loaded: LoadedModel, folder: Path) -> None:
    """Put the adapter in ``folder`` on the model, for inference.

    Raises:
        InputError: there is no adapter, or it belongs to another model.
    """
    if not (folder / "adapter_config.json").exists():
        raise InputError("--run", f"no adapter in {folder}", "train the run first")
    from peft import PeftModel

    try:
        loaded.model = PeftModel.from_pretrained(loaded.model, str(folder))
    except (RuntimeError, ValueError) as error:
        raise InputError(
            "--run", one_line(str(error)), "expected an adapter of this model"
        ) from error
    loaded.model.eval()


def trainable_parameters(model: Any) -> int:
    """Parameters that training changes."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def release(loaded: LoadedModel) -> None:
    """Give the model's memory back, also the accelerator's."""
    loaded.model = None
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


ENGINES = {
    "fused": "medcot.engines.fused.stack",
    "split": "medcot.engines.fsdp.model",
    "transformers": "medcot.engines.hf",
    "unsloth": "medcot.engines.unsloth",
}


def _engine(name: str) -> ModuleType:
    deny_jupyter()
    return import_module(ENGINES[name])


@contextmanager
def _readable_errors(config: RunConfig) -> Iterator[None]:
    """Turn what the loading libraries raise into one line that names the option."""
    try:
        yield
    except (InputError, RunFailed):
        raise
    except Exception as error:
        raise _explain(config, error) from error


def _explain(config: RunConfig, error: Exception) -> Exception:
    """The one line for what a loading library raised; what nobody foresaw stays as it is."""
    if type(error).__name__ == "OutOfMemoryError":
        return RunFailed("model", "the model does not fit into memory.", "Try --quantization 4bit.")
    if not isinstance(error, OSError | ValueError | KeyError):
        return error
    needs = "expected a causal language model in safetensors with its tokenizer"
    if Path(config.model).exists():
        return InputError(f"--model {config.model}", one_line(str(error), 120), needs)
    return explain_hub_error(error, f"--model {config.model}", "model")
