"""Machines and plans that tests of the planner share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from medcot.config.presets import make_config
from medcot.hardware.machine import Machine
from medcot.planning.model_specs import find_model_spec, look_up_model_spec
from medcot.planning.plan import Plan, make_plan

LLAMA_8B = look_up_model_spec("meta-llama/Llama-3.1-8B")
assert LLAMA_8B is not None
LAPTOP = Machine((), 2, 16.0, "Linux x86_64")
GPUS = ("T4", "2xT4", "L4", "A10G", "RTX 4090", "A100", "H100", "H200")
GPU_PRESETS = ("tutorial", "kaggle-t4", "kaggle-t4x2", "gpu-24g", "gpu-80g")


def plan_for(
    preset: str,
    machine: Machine,
    rows: int = 400,
    mean: float = 788,
    longest: int = 1900,
    **given: Any,
) -> Plan:
    config = make_config(preset, given)
    return make_plan(config, machine, find_model_spec(config), rows, mean, longest)


def without_unsloth(machine: Machine) -> Machine:
    return replace(machine, packages=("bitsandbytes",))
