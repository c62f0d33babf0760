"""Models of any family: counted as peft counts them, planned with a margin, refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from medcot.config.presets import make_config
from medcot.errors import InputError
from medcot.hardware.machine import named_machine
from medcot.planning import architecture
from medcot.planning.model_specs import CountedSpec, ModelSpec, find_model_spec, read_model_spec
from medcot.planning.plan import make_plan
from tests.support.families import FAMILIES, family_config
from tests.support.plans import LAPTOP


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("MEDCOT_CACHE", str(tmp_path / "cache"))
    import transformers  # noqa: F401 - so that models are counted in this process

    return tmp_path / "cache"


def spec_of(family: str) -> ModelSpec:
    return read_model_spec(json.loads(family_config(family, 96).to_json_string()), "config.json")


def counted_by_peft(family: str, rank: int) -> tuple[int, int]:
    """(trainable, all parameters without adapters), by the real peft, on the meta device."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    from medcot.engines.hf import make_lora_config

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(family_config(family, 96))
        total = model.num_parameters()
        adapted = get_peft_model(
            model, make_lora_config(model, make_config("demo", {"rank": rank}))
        )
    assert not [
        name for name, p in adapted.named_parameters() if p.requires_grad and "vision" in name
    ]
    return adapted.get_nb_trainable_parameters()[0], total


@pytest.mark.parametrize("family", FAMILIES)
def test_parameter_counts_of_any_family_are_those_of_peft(family: str) -> None:
    spec = spec_of(family)
    assert (spec.lora_parameters(8), spec.parameters) == counted_by_peft(family, 8)


@pytest.mark.parametrize("family", ["gpt_oss", "qwen3_moe"])
def test_experts_get_no_adapter_and_only_the_asked_ones_are_multiplied(family: str) -> None:
    spec = spec_of(family)
    assert isinstance(spec, CountedSpec)
    assert set(spec.targets) == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert spec.experts == 4
    assert spec.computed_parameters < spec.parameters
    assert spec.linear_parameters < spec.computed_parameters


def plan_of(family: str, machine: Any = LAPTOP, **given: Any) -> Any:
    config = make_config("demo", given)
    return make_plan(config, machine, spec_of(family), 48, 200, 400)


def test_a_counted_model_is_planned_with_a_margin_and_that_is_said() -> None:
    counted, known = plan_of("olmo2"), plan_of("llama")
    assert counted.memory_gib["activations"] > known.memory_gib["activations"]
    assert counted.time_s["train"] > known.time_s["train"]
    said = [str(warning) for warning in counted.warnings]
    assert any("olmo2 were counted, not measured" in line for line in said)
    assert not [line for line in map(str, known.warnings) if "counted" in line]


@pytest.mark.parametrize(
    ("family", "says"),
    [("gpt_oss", "Mixture of 4 experts"), ("gemma3", "vision_tower, multi_modal_projector stay")],
)
def test_what_of_a_model_is_not_trained_is_said(family: str, says: str) -> None:
    assert any(says in str(reason) for reason in plan_of(family).reasons)


def test_auto_takes_transformers_on_a_gpu_and_fused_is_refused_by_the_familys_name() -> None:
    h100 = named_machine("H100")
    plan = plan_of("phi3", h100)
    assert (plan.engine, plan.packing) == ("transformers", False)
    assert any("family phi3" in str(reason) for reason in plan.reasons)
    with pytest.raises(InputError, match="models of the family phi3"):
        plan_of("phi3", h100, engine="fused")


def test_attention_is_what_transformers_offers() -> None:
    assert plan_of("gpt_oss").attention == "eager"
    assert plan_of("glm4").attention == "sdpa"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"model_type": "brandnew"}, "'brandnew', which transformers"),
        ({"model_type": "bert"}, "'bert', which is no causal"),
        ({"model_type": "t5"}, "'t5', which is no causal"),
        ({"model_type": "whisper"}, "'whisper', which is no causal"),
        ({"model_type": "gemma2", "hidden_size": "wide"}, "cannot be built"),
        ({"model_type": "gemma2", "num_hidden_layers": 10**6}, "layers"),
    ],
)
def test_what_cannot_be_counted_is_refused_in_one_line(values: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        read_model_spec(values, "m/config.json")
    assert str(caught.value).startswith("m/config.json")
    assert "\n" not in str(caught.value)


def test_counts_are_kept_by_the_content_of_the_config(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = spec_of("granite")
    monkeypatch.setattr(architecture, "_count", None)
    assert spec_of("granite") == first
    [kept] = (own_cache / "architectures").iterdir()
    kept.write_text("{")
    with pytest.raises(TypeError):  # damaged: counted again, by what is None now
        spec_of("granite")


def test_a_process_without_transformers_counts_in_another(tmp_path: Path) -> None:
    family_config("granite", 96).save_pretrained(tmp_path)
    code = (
        "import sys, medcot.planning.model_specs as s\n"
        "from medcot.config.presets import make_config\n"
        f"spec = s.find_model_spec(make_config('demo', {{'model': {str(tmp_path)!r}}}))\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'heavy import'\n"
        "print(spec.parameters)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(done.stdout) == spec_of("granite").parameters


# --- which layers get LoRA --------------------------------------------------------------------


def test_named_layers_alone_get_lora(tmp_path: Path) -> None:
    family_config("phi3", 96).save_pretrained(tmp_path)
    config = make_config("demo", {"model": str(tmp_path), "target_modules": "qkv_proj, o_proj"})
    spec = find_model_spec(config)
    assert spec.targets == ("qkv_proj", "o_proj")
    assert spec.lora_parameters(2) == 2 * 2 * ((32 + 64) + (32 + 32))


def test_a_layer_that_the_model_lacks_is_refused_with_those_it_has() -> None:
    config = make_config("demo", {"target_modules": "qkv_proj"})
    with pytest.raises(InputError, match=r"no linear layer 'qkv_proj'.*choose from q_proj"):
        find_model_spec(config)
    with pytest.raises(InputError, match="--target-modules"):
        make_config("demo", {"target_modules": "q proj"})


def test_lora_on_some_layers_is_not_for_the_fused_engine() -> None:
    config = make_config("demo", {"target_modules": "q_proj,v_proj", "rank": 16})
    machine = named_machine("H100")
    plan = make_plan(config, machine, find_model_spec(config), 48, 200, 400)
    assert plan.engine != "fused"
    assert plan.trainable_parameters == 30 * 16 * ((576 + 576) + (576 + 192))
