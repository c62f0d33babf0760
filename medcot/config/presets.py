"""Defines the presets: values for a kind of machine, as differences from the defaults."""

from __future__ import annotations

import re
from typing import Any

from medcot.config.schema import (
    MEDICAL_O1,
    R1_LLAMA_8B,
    SHORT_DATA,
    RunConfig,
    build_config,
)
from medcot.errors import InputError, nearest, one_line

_ON_A_GPU: dict[str, Any] = {
    "model": R1_LLAMA_8B,
    "dataset": MEDICAL_O1,
    "samples": 500,
    "rank": 16,
    "alpha": 16,
    "steps": 60,
    "learning_rate": 2e-4,
    "max_length": 2048,
    "batch": 8,
    "warmup_steps": 5,
    "optimizer": "adamw_8bit",
    "style": "tutorial",
    "test_samples": 100,
    "generate_samples": 16,
    "ability_samples": 200,
    "thought_samples": 100,
    "max_new_tokens": 1200,
    "wandb_project": "Fine-tune-DeepSeek-R1-Distill-Llama-8B on Medical COT Dataset",
}

_ON_KAGGLE = _ON_A_GPU | {"quantization": "4bit", "precision": "fp16", "wandb": "online"}

PRESETS: dict[str, dict[str, Any]] = {
    # As few steps as show the form of an answer learnt, by about 10,000 tokens of short cases:
    # docs/experiments.md. The longer bundled Chinese cases take up to 2,742 tokens, since the
    # bundled model's vocabulary is English.
    "demo": {
        "dataset": SHORT_DATA,
        "samples": 72,
        "rank": 8,
        "steps": 14,
        "batch": 4,
        "learning_rate": 1e-3,
        "test_samples": 16,
        "validation_samples": 8,
        "generate_samples": 12,
        "mcq": ("sample",),
        "mcq_samples": 12,
        "max_length": 3072,
    },
    "tutorial": _ON_A_GPU
    | {
        "engine": "unsloth",
        "quantization": "4bit",
        "micro_batch": 2,
        "packing": "off",
        "checkpointing": "on",
        "wandb": "online",
    },
    "kaggle-t4": _ON_KAGGLE,
    # The same by an older name: every T4 session on Kaggle has two, and both are used.
    "kaggle-t4x2": _ON_KAGGLE,
    "gpu-24g": _ON_A_GPU | {"samples": 2000, "steps": None, "epochs": 1.0},
    "gpu-80g": _ON_A_GPU
    | {"samples": 10_000, "steps": None, "epochs": 1.0, "batch": 16, "test_samples": 400},
}
"""Each preset as its differences from the field defaults."""


def make_config(preset: str, overrides: dict[str, Any] | None = None) -> RunConfig:
    """Return the config of ``preset`` (not ``auto``) with ``overrides`` on top.

    Raises:
        InputError: unknown preset or field, or a value out of bounds.
    """
    if preset not in PRESETS:
        known = ["auto", *PRESETS]
        needs = f"expected one of {', '.join(known)}{nearest(preset, known)}"
        raise InputError("--preset", f"found {preset!r}", needs)
    given = {k: v for k, v in (overrides or {}).items() if k != "preset"}
    base = dict(PRESETS[preset])
    if given.get("epochs") is not None or given.get("steps") is not None:
        base.pop("steps", None)
        base.pop("epochs", None)
    config = build_config(base | given | {"preset": preset})
    _require_project_name(config.wandb_project)
    return config


def _require_project_name(name: str) -> None:
    """Refuse a W&B project that its client would refuse, after which nothing would be tracked.

    The rule is no part of the config's schema: a run of an earlier version still opens.
    """
    if len(name) > 128 or re.search(r"[/\\#?%:]", name):
        needs = "expected at most 128 characters, none of them / \\ # ? % :"
        raise InputError("--wandb-project", f"found {one_line(repr(name), 80)}", needs)
