"""Finds and loads a model, puts an adapter on it, and frees its memory."""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from medcot.catalog import Message
from medcot.config.schema import BUNDLED_MODEL, RunConfig
from medcot.data.hub import explain_hub_error, find_commit, no_connection
from medcot.data.snapshots import find_snapshot
from medcot.engines.base import Engine, LoadedModel, Location, settle_pad_token
from medcot.engines.bundled_model import bundled_model
from medcot.engines.compat import (
    deny_jupyter,
    fix_cublas_workspace,
    ignore_old_torchao,
    repeat_shared_keys,
)
from medcot.engines.hf import HfEngine
from medcot.engines.imports import collector_paused
from medcot.engines.model_files import check_model_files
from medcot.errors import InputError, RunFailed, one_line, ran_out_of_memory
from medcot.hardware.machine import Machine
from medcot.paths import exists
from medcot.planning.constraints import find_constraints
from medcot.planning.model_specs import find_model_spec
from medcot.planning.plan import Plan


class _HubUnreachable(Exception):
    """Raised so that :func:`_commit_on_hub` does not cache the answer "no connection"."""


def locate(model: str, revision: str = "") -> Location:
    """Find a model: bundled, a folder, or a commit on the hub.

    The hub is asked once per process and name, so that all parts of a run see one commit. A lost
    connection is not remembered.

    Raises:
        InputError: Neither a folder nor on the hub.
    """
    if model == BUNDLED_MODEL:
        return Location(str(bundled_model()), cached=True)
    if exists(model):
        snapshot = find_snapshot(model)
        folder = snapshot.folder if snapshot else Path(model)
        check_model_files(folder)
        commit = snapshot.commit if snapshot else ""
        # An adapter names the base by this path, and must be of use from any folder.
        return Location(str(folder.absolute()), cached=True, commit=commit)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model):
        needs = Message("needs_folder_or_hub_name", {"model": BUNDLED_MODEL})
        raise InputError("--model", f"found {model!r}", needs)
    from httpx import HTTPError

    try:
        return Location(model, _commit_on_hub(model, revision))
    except _HubUnreachable:
        if commit := _cached_commit(model, revision):
            return Location(model, commit, cached=True)
    except (OSError, ValueError, HTTPError) as error:
        raise explain_hub_error(error, f"--model {model}", "model") from None
    needs = Message("needs_local_folder")
    raise InputError(f"--model {model}", no_connection(), needs)


@cache
def _commit_on_hub(model: str, revision: str) -> str:
    commit = find_commit(model, revision, "model")
    if not commit:
        raise _HubUnreachable
    return commit


def _cached_commit(model: str, revision: str) -> str:
    """Return the commit whose files the client's cache has under ``revision``, or ""."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, "config.json", revision=revision or None)
    return Path(found).parent.name if isinstance(found, str) else ""


def engine_for(plan: Plan) -> Engine:
    """Return the engine that a plan asks for."""
    return _engine_named("fsdp" if plan.split else plan.engine)


def _engine_named(name: str) -> Engine:
    """Return an engine; its libraries are imported when it is first used."""
    deny_jupyter()
    match name:
        case "fused":
            from medcot.engines.fused.engine import FusedEngine

            return FusedEngine()
        case "fsdp":
            from medcot.engines.fsdp.engine import FsdpEngine

            return FsdpEngine()
        case "unsloth":
            from medcot.engines.unsloth import UnslothEngine

            return UnslothEngine()
        case "transformers":
            return HfEngine()
        case _:
            raise ValueError(f"no engine is called {name!r}")


def prepare_engine(config: RunConfig, machine: Machine) -> None:
    """Prepare this process for the engine of ``config``, before transformers is imported."""
    if config.deterministic:
        fix_cublas_workspace()
    ground = find_constraints(config, machine, find_model_spec(config))
    _engine_named("fsdp" if ground.split else ground.engine).prepare_process()


def load_tokenizer(config: RunConfig) -> Any:
    """Load the tokenizer of the model, with a pad token that is not EOS.

    Raises:
        InputError: There is no such model, or it has no tokenizer.
    """
    with _readable_errors(config):
        with collector_paused():
            from transformers import AutoTokenizer

        where = locate(config.model, config.model_revision)
        tokenizer = AutoTokenizer.from_pretrained(where.source, **where.options)
    settle_pad_token(tokenizer)
    return tokenizer


def load_base(config: RunConfig, plan: Plan) -> LoadedModel:
    """Load the untuned model as the plan says.

    Raises:
        InputError: The model does not exist, may not be read or is no causal language model.
        RunFailed: It does not fit into memory.
    """
    from medcot.data.tokenization import chat_template

    with _readable_errors(config):
        from transformers.utils import logging

        logging.disable_progress_bar()
        if plan.device == "cuda":
            repeat_shared_keys()
        where = locate(config.model, config.model_revision)
        loaded = engine_for(plan).load_base(config, plan, where)
    loaded.chat = chat_template(loaded.tokenizer)
    return loaded


def add_adapter(loaded: LoadedModel, config: RunConfig, plan: Plan) -> None:
    """Put a new LoRA adapter on the model; it changes nothing until it is trained."""
    ignore_old_torchao()
    loaded.model = loaded.engine.add_adapter(loaded, config, plan)


def remove_adapter(loaded: LoadedModel) -> None:
    """Take the adapter off the model, which is then the untuned one again."""
    if hasattr(loaded.model, "peft_config"):
        loaded.model = loaded.model.unload()


def load_adapter(loaded: LoadedModel, config: RunConfig, plan: Plan, folder: Path | None) -> None:
    """Put the trained adapter in ``folder`` on the model, for inference.

    Args:
        folder: None in the worker processes of an engine that ``splits``: they receive the
            weights from the main process.

    Raises:
        InputError: There is no adapter, or it belongs to another model.
        RunFailed: A weight of it is not finite.
    """
    if folder is not None and not (folder / "adapter_config.json").exists():
        raise InputError("--run", f"no adapter in {folder}", "train the run first")
    ignore_old_torchao()
    try:
        loaded.model = loaded.engine.read_adapter(loaded, config, plan, folder)
    except Exception as error:
        # A damaged file makes peft and safetensors raise whatever the damage suggests.
        found = one_line(str(error)) or type(error).__name__
        raise InputError(f"--run, {folder}", found, "expected an adapter of this model") from error
    if name := find_weight_not_finite(loaded.model):
        raise RunFailed(
            "model",
            f"the adapter's {name} holds NaN or infinity.",
            "It was destroyed in training: start a new run with a lower --learning-rate.",
        )


def find_weight_not_finite(model: Any) -> str | None:
    """Return the name of the first LoRA weight with NaN or infinity, None where all are finite."""
    weights = ((name, p) for name, p in model.named_parameters() if "lora_" in name)
    return next((name for name, p in weights if not p.detach().isfinite().all()), None)


def trainable_parameters(model: Any) -> int:
    """Count the parameters that training changes."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def release(loaded: LoadedModel) -> None:
    """Free the model's memory, also the accelerator's."""
    loaded.model = None
    free_memory()


def free_memory() -> None:
    """Give back what nothing refers to any more, also the accelerator's memory."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is None:
        return
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


@contextmanager
def _readable_errors(config: RunConfig) -> Iterator[None]:
    """Turn errors of the loading libraries into one line that names the option."""
    try:
        yield
    except (InputError, RunFailed):
        raise
    except Exception as error:
        raise _explain(config, error) from error


def _explain(config: RunConfig, error: Exception) -> Exception:
    """Return one line for an expected error of a loading library; any other stays as it is."""
    if ran_out_of_memory(error):
        return RunFailed("model", Message("error_model_memory"), Message("needs_4bit"))
    if not isinstance(error, OSError | ValueError | KeyError):
        return error
    needs = "expected a causal language model in safetensors with its tokenizer"
    if exists(config.model):
        return InputError(f"--model {config.model}", one_line(str(error), 120), needs)
    return explain_hub_error(error, f"--model {config.model}", "model")
