"""What the planner chooses, why, and how it refuses what cannot be had."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medcot.config.presets import make_config
from medcot.errors import InputError
from medcot.hardware.gpu_specs import Gpu
from medcot.hardware.machine import Machine, named_machine
from medcot.planning.constraints import unused_packages
from medcot.planning.memory_model import StepConfig, longest_pass_tokens, predict_memory
from medcot.planning.model_specs import find_model_spec, read_model_spec
from medcot.planning.plan import make_plan
from tests.support.plans import LAPTOP, plan_for, without_unsloth


def test_the_tutorial_preset_runs_as_the_tutorial_writes_it() -> None:
    plan = plan_for("tutorial", named_machine("T4"))
    assert (plan.micro_batch, plan.accumulation, plan.packing) == (2, 4, False)
    assert (plan.engine, plan.quantization, plan.precision) == ("unsloth", "4bit", "fp16")
    assert plan.checkpointing
    assert plan.optimizer == "adamw_8bit"


def test_sixteen_bit_weights_are_kept_where_they_cost_no_time() -> None:
    plan = plan_for("gpu-80g", named_machine("A100"))
    assert plan.quantization == "none"
    assert not plan.checkpointing
    assert plan.precision == "bf16"
    assert plan.packing


def test_products_go_in_8_bit_floats_only_if_asked_and_that_is_said() -> None:
    exact = plan_for("gpu-80g", named_machine("H100"))
    assert exact.quantization == "none"
    assert any("--quantization fp8 would be faster" in str(reason) for reason in exact.reasons)
    plan = plan_for("gpu-80g", named_machine("H100"), quantization="fp8")
    assert any("--quantization none costs nothing" in str(reason) for reason in plan.reasons)
    assert plan.tokens_per_second > 1.2 * exact.tokens_per_second
    assert plan.memory_gib["weights"] == pytest.approx(exact.memory_gib["weights"] + 13.0, abs=0.1)


SHAPE = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "vocab_size": 512,
}  # fmt: skip


@pytest.mark.parametrize(
    ("gpu", "changes", "why"),
    [
        ("A100", {}, "below compute capability 8.9"),
        ("H100", {"precision": "fp16"}, "--precision fp16"),
        ("H100", {"engine": "transformers"}, "transformers engine"),
    ],
)
def test_8_bit_floats_that_cannot_be_had_are_refused(
    gpu: str, changes: dict[str, Any], why: str
) -> None:
    with pytest.raises(InputError, match=why) as caught:
        plan_for("gpu-80g", named_machine(gpu), quantization="fp8", **changes)
    assert "--quantization" in str(caught.value)


def test_four_bit_weights_are_taken_where_sixteen_bits_do_not_fit() -> None:
    plan = plan_for("gpu-24g", named_machine("T4"))
    assert plan.quantization == "4bit"
    assert any("16-bit weights would take" in reason for reason in map(str, plan.reasons))


def test_activations_are_recomputed_only_when_memory_demands_it() -> None:
    roomy = plan_for("kaggle-t4", named_machine("H100"), longest=1500)
    tight = plan_for("kaggle-t4", named_machine("T4"), mean=4000, longest=8000, max_length=8192)
    assert not roomy.checkpointing
    assert tight.checkpointing
    assert any(
        "keeping all" in reason and "would take" in reason for reason in map(str, tight.reasons)
    )


def test_as_few_layers_are_recomputed_as_memory_demands() -> None:
    plan = plan_for("kaggle-t4", named_machine("A10G"), micro_batch=8)
    assert 0 < plan.recomputed_layers < 32
    assert plan.peak_gib <= plan.limit_gib
    config = make_config("kaggle-t4", {"micro_batch": 8})
    setting = StepConfig(
        "fused", "cuda", "4bit", "fp16", 8, True, plan.recomputed_layers - 1, "adamw_8bit"
    )
    tokens = longest_pass_tokens(setting, 788, 1900)
    more = sum(predict_memory(setting, find_model_spec(config), 16, tokens).values())
    assert more > plan.limit_gib


def test_samples_are_shared_among_the_launchers_processes() -> None:
    one, two = (plan_for("kaggle-t4x2", named_machine(name)) for name in ("T4", "2xT4"))
    assert (one.gpus, two.gpus) == (1, 2)
    assert two.tokens_per_second == pytest.approx(2 * one.tokens_per_second, rel=0.15)


def test_an_idle_second_gpu_is_pointed_out() -> None:
    plan = plan_for("kaggle-t4x2", replace(named_machine("2xT4"), processes=1))
    assert plan.gpus == 1
    assert any("accelerate launch" in warning for warning in map(str, plan.warnings))


def test_two_processes_on_a_cpu_share_the_batch_too() -> None:
    plan = plan_for("demo", replace(LAPTOP, processes=2), longest=1000, batch=4)
    assert plan.gpus == 2
    assert plan.micro_batch * plan.accumulation == 2


def test_a_cpu_plan_uses_what_every_machine_has() -> None:
    plan = plan_for("demo", LAPTOP, longest=1000)
    assert (plan.engine, plan.device, plan.precision) == ("transformers", "cpu", "fp32")
    assert (plan.quantization, plan.packing, plan.gpus) == ("none", False, 1)
    assert plan.peak_gib < 4


def test_a_gpu_is_planned_with_the_fused_engine_where_it_can_train_the_model() -> None:
    assert plan_for("gpu-24g", named_machine("L4")).engine == "fused"
    assert plan_for("gpu-24g", named_machine("L4"), model="Qwen/Qwen3-4B").engine == "fused"
    dropout = plan_for("gpu-24g", named_machine("L4"), model="Qwen/Qwen3-4B", dropout=0.1)
    assert dropout.engine == "unsloth"
    assert any("LoRA dropout" in reason for reason in map(str, dropout.reasons))


def test_a_gpu_without_unsloth_is_planned_with_transformers() -> None:
    machine = without_unsloth(named_machine("L4"))
    plan = plan_for("gpu-24g", machine, model="Qwen/Qwen3-4B", dropout=0.1)
    assert plan.engine == "transformers"
    assert any("unsloth is not installed" in reason for reason in map(str, plan.reasons))
    with pytest.raises(InputError, match="--engine fused: does not support LoRA dropout"):
        plan_for("gpu-24g", machine, model="Qwen/Qwen3-4B", dropout=0.1, engine="fused")


@pytest.mark.parametrize(
    ("unusual", "feature"),
    [
        ({"hidden_act": "relu2"}, "the activation function 'relu2'"),
        ({"attention_dropout": 0.1}, "dropout in attention"),
    ],
)
def test_layers_that_the_fused_engine_would_compute_otherwise_are_refused_in_one_line(
    unusual: dict[str, Any], feature: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SHAPE | unusual))
    with pytest.raises(InputError, match=f"--engine fused: does not support {feature}"):
        plan_for("gpu-24g", named_machine("L4"), model=str(tmp_path), engine="fused")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("engine", "transformers"),
        ("quantization", "8bit"),
        ("quantization", "none"),
        ("precision", "fp16"),
        ("micro_batch", 4),
        ("packing", "off"),
        ("checkpointing", "on"),
        ("optimizer", "adamw_torch"),
    ],
)
def test_what_the_config_fixes_stays_fixed(field: str, value: Any) -> None:
    plan = plan_for("gpu-80g", named_machine("H100"), **{field: value})
    expected = {"on": True, "off": False}.get(value, value)
    assert getattr(plan, field) == expected


def test_each_choice_has_its_reason() -> None:
    plan = plan_for("gpu-80g", named_machine("A100"))
    text = " ".join(map(str, plan.reasons))
    for topic in ("Device", "Engine", "Precision", "Attention", "Packing", "16-bit weights"):
        assert topic in text
    assert "activations" in text
    assert "per forward pass" in text
    assert all(reason.endswith(".") for reason in map(str, plan.reasons))


def test_times_of_unmeasured_gpus_are_called_estimates() -> None:
    assert any(
        "estimates" in str(line) for line in plan_for("gpu-24g", named_machine("L4")).warnings
    )
    assert not plan_for("gpu-80g", named_machine("H100")).warnings


def test_many_passes_over_few_rows_are_warned_of() -> None:
    plan = plan_for("demo", LAPTOP, rows=4, longest=1000, steps=40, batch=4)
    assert plan.epochs == 40
    assert any("by heart" in warning for warning in map(str, plan.warnings))


def test_fewer_prompts_are_answered_at_once_where_memory_is_short() -> None:
    small, large = (plan_for("gpu-24g", named_machine(name)).answer_rows for name in ("T4", "H100"))
    assert 1 <= small < large <= 64


# --- refusals ---------------------------------------------------------------------------------

P100 = Machine((Gpu("Tesla P100", 15.9, (6, 0), 19.0),), 4, 29.0, "Linux", ("bitsandbytes",))
BARE_GPU = replace(named_machine("L4"), packages=())


@pytest.mark.parametrize(
    ("preset", "machine", "given_values", "said"),
    [
        ("demo", LAPTOP, {"engine": "unsloth"}, "--engine"),
        ("demo", LAPTOP, {"quantization": "4bit"}, "--quantization"),
        ("demo", LAPTOP, {"quantization": "8bit"}, "--quantization"),
        ("demo", LAPTOP, {"optimizer": "adamw_8bit"}, "--optimizer"),
        ("demo", LAPTOP, {"precision": "fp16"}, "--precision"),
        ("demo", LAPTOP, {"packing": "on"}, "--packing"),
        ("demo", LAPTOP, {"micro_batch": 3}, "--micro-batch"),
        ("demo", LAPTOP, {"micro_batch": 8}, "--micro-batch"),
        ("demo", replace(LAPTOP, processes=3), {}, "--batch"),
        ("tutorial", LAPTOP, {}, "--preset demo"),
        ("kaggle-t4", LAPTOP, {}, "--preset demo"),
        ("gpu-24g", LAPTOP, {}, "--preset demo"),
        ("gpu-80g", P100, {}, "compute capability 6.0"),
        ("gpu-24g", named_machine("T4"), {"precision": "bf16"}, "--precision fp16"),
        ("gpu-24g", BARE_GPU, {}, "medcot[gpu]"),
        ("gpu-24g", BARE_GPU, {"optimizer": "adamw_torch", "quantization": "4bit"}, "medcot[gpu]"),
        ("gpu-24g", BARE_GPU, {"engine": "unsloth"}, "not installed"),
    ],
)
def test_what_cannot_be_had_is_refused_with_its_name(
    preset: str, machine: Machine, given_values: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError) as caught:
        plan_for(preset, machine, longest=1000, **given_values)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_old_gpu_is_left_unused_by_the_demo() -> None:
    plan = plan_for("demo", P100, longest=1000)
    assert plan.device == "cpu"
    assert any("too old" in warning for warning in map(str, plan.warnings))


def read_advice(advice: str) -> dict[str, Any]:
    """The first ``--option value`` of an error's advice, as a config field."""
    found = re.search(r"--([a-z-]+) (\S+)", advice)
    assert found, advice
    value = found.group(2).rstrip(",.)")
    return {found.group(1).replace("-", "_"): int(value) if value.isdigit() else value}


@pytest.mark.parametrize(
    ("preset", "gpu", "given_values"),
    [
        ("gpu-24g", "T4", {"quantization": "none"}),
        ("kaggle-t4", "T4", {"micro_batch": 8, "checkpointing": "off"}),
        ("kaggle-t4", "T4", {"max_length": 65_536}),
        ("gpu-24g", "T4", {"model": "unsloth/Qwen2.5-14B-Instruct", "checkpointing": "off"}),
    ],
)
def test_following_the_advice_makes_it_fit(
    preset: str, gpu: str, given_values: dict[str, Any]
) -> None:
    config = make_config(preset, given_values)
    machine = named_machine(gpu)
    longest = config.max_length
    with pytest.raises(InputError, match="GiB") as caught:
        make_plan(config, machine, find_model_spec(config), 400, 788, longest)
    better = make_config(preset, given_values | read_advice(str(caught.value.needs)))
    plan = make_plan(better, machine, find_model_spec(better), 400, 788, better.max_length)
    assert plan.peak_gib <= plan.limit_gib


STORED = "unsloth/Qwen2.5-7B-Instruct-bnb-4bit"


def test_weights_that_a_repository_stores_in_4_bits_are_used_as_they_are() -> None:
    # 16-bit weights would fit and train faster, but the repository has none.
    roomy = named_machine("H100")
    assert plan_for("gpu-80g", roomy, model="unsloth/Qwen2.5-7B-Instruct").quantization == "none"
    plan = plan_for("gpu-80g", roomy, model=STORED)
    assert plan.quantization == "4bit"
    assert any(reason.code == "reason_stored" for reason in plan.reasons)
    with pytest.raises(InputError, match=r"--quantization none: .* in 4bit; use --quantization 4b"):
        plan_for("gpu-80g", roomy, model=STORED, quantization="none")
    with pytest.raises(InputError, match=r"stored in 4bit, which needs CUDA .* in 16 bits"):
        plan_for("demo", LAPTOP, model=STORED)


@pytest.mark.parametrize(
    ("settings", "stored"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}, "4bit"),
        ({"load_in_8bit": True}, "8bit"),
        (None, "none"),
    ],
)
def test_how_weights_are_stored_is_read_from_the_model(
    settings: dict[str, Any] | None, stored: str
) -> None:
    values = SHAPE | {"quantization_config": settings}
    assert read_model_spec(values, "config.json").stored == stored


@pytest.mark.parametrize("method", ["gptq", "mxfp4", "fp8"])
def test_weights_that_another_program_quantized_are_refused(method: str) -> None:
    with pytest.raises(InputError, match=f"quantized by '{method}'; use the repository in 16 bits"):
        read_model_spec(SHAPE | {"quantization_config": {"quant_method": method}}, "config.json")


def test_a_model_far_too_large_is_answered_with_a_smaller_one() -> None:
    config = make_config("demo", {"model": "unsloth/Qwen2.5-14B-Instruct"})
    with pytest.raises(InputError) as caught:
        make_plan(config, LAPTOP, find_model_spec(config), 48, 500, 1000)
    assert "GiB usable RAM" in str(caught.value.got)
    assert "--model unsloth/" in str(caught.value.needs)


@pytest.mark.parametrize(
    ("changes", "unused"),
    [
        ({}, ("unsloth",)), ({"dropout": 0.1}, ()), ({"engine": "unsloth"}, ()),
        ({"engine": "transformers"}, ("unsloth",)), ({"model": "unsloth/Qwen3-4B"}, ("unsloth",)),
        ({"model": "someone/a-model-of-mine"}, ()),
    ],
)  # fmt: skip
def test_what_a_run_does_not_import_need_not_be_installed(
    changes: dict[str, Any], unused: tuple[str, ...]
) -> None:
    assert unused_packages(make_config("kaggle-t4", changes)) == unused
