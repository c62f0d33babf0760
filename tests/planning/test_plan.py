"""The planner: exact counts, honest limits, and advice that works."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medcot.config.presets import PRESETS, make_config
from medcot.config.schema import R1_LLAMA_8B, TARGET_MODULES
from medcot.errors import InputError
from medcot.hardware.machine import named_machine
from medcot.planning.memory_model import StepConfig, longest_pass_tokens, predict_memory
from medcot.planning.model_specs import SMOLLM2_135M, ModelSpec, find_model_spec, read_model_spec
from medcot.planning.plan import describe, make_plan
from medcot.planning.search import Candidate, choose_best
from medcot.planning.speed_model import (
    BUNDLED_ABILITIES,
    BUNDLED_QUESTIONS,
    SHARED_CORES,
    micro_batch_s,
)
from medcot.planning.validation import MeasuredRun, RecipeRun, load_measured_runs, predict_run
from medcot.runs.directory import RunDirectory
from tests.support.plans import GPU_PRESETS, GPUS, LAPTOP, LLAMA_8B, plan_for

# --- counting ---------------------------------------------------------------------------------


def tiny_config(family: str) -> Any:
    from transformers import LlamaConfig, Qwen2Config, Qwen3Config

    sizes: dict[str, Any] = {
        "hidden_size": 48,
        "intermediate_size": 112,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "vocab_size": 96,
    }
    return {
        "llama": LlamaConfig(**sizes, tie_word_embeddings=False),
        "llama with biases": LlamaConfig(
            **sizes, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
        ),
        "llama with wide heads": LlamaConfig(**sizes, head_dim=16, tie_word_embeddings=True),
        "qwen2": Qwen2Config(**sizes, tie_word_embeddings=True),
        "qwen3": Qwen3Config(**sizes, head_dim=16, tie_word_embeddings=False),
    }[family]


def counted_by_peft(config: Any, rank: int) -> tuple[int, int]:
    """(trainable, all parameters without adapters), counted by the real peft, without memory."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        total = model.num_parameters()
        lora = LoraConfig(r=rank, target_modules=list(TARGET_MODULES), task_type="CAUSAL_LM")
        adapted = get_peft_model(model, lora)
    return adapted.get_nb_trainable_parameters()[0], total


@pytest.mark.parametrize(
    "family", ["llama", "llama with biases", "llama with wide heads", "qwen2", "qwen3"]
)
def test_parameter_counts_are_those_of_peft(family: str) -> None:
    config = tiny_config(family)
    shape = read_model_spec(config.to_dict(), "config.json")
    for rank in (1, 8, 16):
        assert (shape.lora_parameters(rank), shape.parameters) == counted_by_peft(config, rank)


def test_parameter_counts_of_real_models_are_those_of_peft() -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        tie_word_embeddings=True,
    )
    assert counted_by_peft(config, 16) == (4_884_480, SMOLLM2_135M.parameters)
    assert SMOLLM2_135M.lora_parameters(16) == 4_884_480
    assert LLAMA_8B.lora_parameters(16) == 41_943_040


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("unsloth/DeepSeek-R1-Distill-Llama-8B", 8_030_261_248),
        ("unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit", 8_030_261_248),
        ("unsloth/Llama-3.2-1B-Instruct", 1_235_814_400),
        ("unsloth/Llama-3.2-3B-Instruct-unsloth-bnb-4bit", 3_212_749_824),
        ("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768),
        ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),
        ("Qwen/Qwen2.5-14B", 14_770_033_664),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", 1_777_088_000),
        ("Qwen/Qwen3-0.6B", 596_049_920),
        ("Qwen/Qwen3-4B", 4_022_468_096),
        ("Qwen/Qwen3-14B", 14_768_307_200),
        ("HuggingFaceTB/SmolLM2-1.7B-Instruct", 1_711_376_384),
    ],
)
def test_well_known_models_need_no_network_to_be_counted(name: str, parameters: int) -> None:
    assert find_model_spec(make_config("demo", {"model": name})).parameters == parameters


def test_a_local_folder_is_counted_from_its_config(tmp_path: Path) -> None:
    tiny_config("qwen2").save_pretrained(tmp_path)
    config = make_config("demo", {"model": str(tmp_path)})
    assert find_model_spec(config).lora_parameters(4) == counted_by_peft(tiny_config("qwen2"), 4)[0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no config.json"),
        ("{", "config.json"),
        ("[]", "not a JSON object"),
        ("{}", "model_type"),
        ('{"model_type": "bert"}', "'bert'"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "hidden_size"),
        ('{"model_type": "llama", "hidden_size": 64, "num_attention_heads": 0}', "num_attention"),
        (b"\xff\xfe\x00", "config.json"),
    ],
)
def test_a_folder_without_a_good_config_is_named(
    content: str | bytes | None, said: str, tmp_path: Path
) -> None:
    if content is not None:
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(InputError) as caught:
        find_model_spec(make_config("demo", {"model": str(tmp_path)}))
    assert said in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["nobody/unheard-of", "no such folder/x/y", "unheardof"])
def test_an_unknown_model_without_network_is_an_input_error(name: str) -> None:
    with pytest.raises(InputError, match="--model"):
        find_model_spec(make_config("demo", {"model": name}))


# --- what always holds ------------------------------------------------------------------------


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("preset", GPU_PRESETS)
def test_every_preset_fits_every_listed_gpu_and_keeps_the_batch(preset: str, gpu: str) -> None:
    plan = plan_for(preset, named_machine(gpu))
    assert plan.peak_gib <= plan.limit_gib
    assert plan.peak_gib == pytest.approx(sum(plan.memory_gib.values()), abs=0.02)
    batch = make_config(preset).batch
    assert plan.micro_batch * plan.accumulation * plan.gpus == batch
    assert plan.time_s["total"] == pytest.approx(
        plan.time_s["load"] + plan.time_s["evaluate"] + plan.time_s["train"], abs=0.3
    )


@settings(max_examples=60, deadline=None)
@given(
    gpu=st.sampled_from(GPUS),
    batch=st.integers(1, 64).map(lambda n: 2 * n),
    rank=st.sampled_from([1, 8, 64, 256]),
    mean=st.floats(20, 2000),
    longest=st.integers(64, 16_384),
    packing=st.sampled_from(["auto", "on", "off"]),
)
def test_no_plan_exceeds_its_limit_or_changes_the_batch(
    gpu: str, batch: int, rank: int, mean: float, longest: int, packing: str
) -> None:
    given_values = {"batch": batch, "rank": rank, "max_length": 16_384, "packing": packing}
    try:
        plan = plan_for("gpu-24g", named_machine(gpu), 500, mean, longest, **given_values)
    except InputError:
        return
    assert plan.peak_gib <= plan.limit_gib
    assert plan.micro_batch * plan.accumulation * plan.gpus == batch
    assert plan.tokens_per_second > 0


def test_a_plan_is_the_same_every_time_and_quick() -> None:
    machine = named_machine("H100")
    config = make_config("gpu-80g", {"batch": 64})
    first = make_plan(config, machine, LLAMA_8B, 10_000, 788, 1900)
    best = float("inf")
    for _ in range(20):
        started = time.process_time()
        assert make_plan(config, machine, LLAMA_8B, 10_000, 788, 1900) == first
        best = min(best, time.process_time() - started)
    assert best < 0.01


def test_longer_rows_never_take_less_memory() -> None:
    setting = StepConfig("unsloth", "cuda", "4bit", "fp16", 4, True, False, "adamw_8bit")
    for shape in (SMOLLM2_135M, LLAMA_8B):
        peaks = [
            sum(
                predict_memory(
                    setting, shape, 16, longest_pass_tokens(setting, 700, longest)
                ).values()
            )
            for longest in (700, 1000, 2000, 4000)
        ]
        assert peaks == sorted(peaks)


def test_a_packed_pass_is_planned_for_its_tokens_and_a_padded_one_for_its_longest_row() -> None:
    padded = StepConfig("unsloth", "cuda", "4bit", "fp16", 4, False, False, "adamw_8bit")
    packed = replace(padded, packing=True)
    assert longest_pass_tokens(padded, 700, 2000) == 8000
    assert longest_pass_tokens(packed, 700, 2000) == 4 * 700 + 0.85 * 2 * 1300
    assert longest_pass_tokens(replace(packed, micro_batch=1), 700, 2000) == 2000
    assert longest_pass_tokens(packed, 2000, 2000) == 8000


def test_common_beginnings_and_even_shares_make_the_longest_pass_shorter() -> None:
    alone = StepConfig("fused", "cuda", "4bit", "fp16", 4, True, 0, "adamw_8bit")
    whole = longest_pass_tokens(alone, 700, 2000)
    assert longest_pass_tokens(replace(alone, shared_tokens=60), 700, 2000) == whole - 3 * 60
    assert (
        longest_pass_tokens(replace(alone, balanced_passes=4), 700, 2000) == 4 * 700 + 0.85 * 1300
    )
    once, again = (
        micro_batch_s(replace(alone, shared_tokens=n), LLAMA_8B, named_machine("H100"), 700, 2000)
        for n in (300, 0)
    )
    assert once < again


def test_padding_costs_time() -> None:
    packed = StepConfig("unsloth", "cuda", "4bit", "bf16", 8, True, False, "adamw_8bit")
    padded = replace(packed, packing=False)
    seconds = [
        micro_batch_s(one, LLAMA_8B, named_machine("H100"), 788, 2000) for one in (packed, padded)
    ]
    assert seconds[1] > 1.2 * seconds[0]


def test_recomputing_keeps_the_input_of_every_layer() -> None:
    setting = StepConfig("transformers", "cuda", "none", "bf16", 1, True, True, "adamw_torch")
    one, two = (
        predict_memory(setting, replace(LLAMA_8B, layers=layers), 16, 1000)["activations"]
        for layers in (1, 2)
    )
    assert (two - one) * 2**30 == pytest.approx(1000 * LLAMA_8B.hidden * 2)


def test_among_equally_fast_settings_the_more_exact_and_then_the_smaller_wins() -> None:
    setting = StepConfig("unsloth", "cuda", "none", "bf16", 8, True, 0, "adamw_8bit")
    large = Candidate(setting, {}, 60.0, 1.0)
    small = Candidate(replace(setting, micro_batch=2), {}, 30.0, 1.05)
    coarse = Candidate(replace(setting, quantization="4bit"), {}, 20.0, 1.0)
    slow = Candidate(replace(setting, recomputed_layers=32), {}, 10.0, 1.5)
    assert choose_best([large, small, coarse, slow]) is small


def test_a_plan_can_be_written_to_the_run_directory(tmp_path: Path) -> None:
    plan = plan_for("demo", LAPTOP, longest=1000)
    run = RunDirectory(tmp_path)
    run.write_json("plan.json", plan)
    kept = run.read_json("plan.json")
    assert kept["trainable_parameters"] == SMOLLM2_135M.lora_parameters(make_config("demo").rank)
    assert set(kept["memory_gib"]) == {
        "weights",
        "adapters",
        "gradients",
        "optimizer",
        "activations",
        "logits",
        "workspace",
    }


def test_planning_brings_no_torch() -> None:
    code = (
        "import sys, medcot.planning.plan as p, medcot.planning.model_specs as s\n"
        "import medcot.cli.doctor\n"
        "import medcot.hardware.machine as h\n"
        "from medcot.config.presets import make_config\n"
        "c = make_config('demo')\n"
        "p.make_plan(c, h.detect_machine(), s.find_model_spec(c), 48, 700, 1000)\n"
        "h.named_machine('T4')\n"
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules), 'heavy import'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# --- against measurements ---------------------------------------------------------------------


def measured_setting(run: RecipeRun) -> StepConfig:
    packed = run.row_tokens == 2048
    return StepConfig(
        run.engine,
        "cuda",
        run.quantization,
        "bf16",
        run.rows,
        packed,
        run.checkpointing,
        "adamw_8bit",
    )


def name_of(run: RecipeRun) -> str:
    recompute = "recomputed" if run.checkpointing else "kept"
    return f"{run.engine} {run.quantization} {run.rows}x{run.row_tokens} {recompute}"


@pytest.mark.parametrize("run", load_measured_runs().runs, ids=name_of)
def test_predictions_meet_the_measured_runs(run: RecipeRun) -> None:
    setting = measured_setting(run)
    tokens = run.rows * run.row_tokens
    if run.engine == "unsloth":
        peak = sum(predict_memory(setting, LLAMA_8B, 16, tokens).values())
        assert peak == pytest.approx(run.peak_gib, rel=0.05)
    real = tokens if setting.packing else 2 * 788
    # Rows of 950 tokens stand for pairs of rows padded to the longer one.
    seconds = micro_batch_s(
        replace(setting, packing=True), LLAMA_8B, named_machine("H100"), run.row_tokens, 2048
    )
    assert real / seconds == pytest.approx(run.tokens_per_second, rel=0.1)


OWN_RUNS = load_measured_runs().own.runs


@pytest.mark.parametrize("run", OWN_RUNS, ids=[str(place) for place in range(len(OWN_RUNS))])
def test_predictions_meet_the_projects_own_runs(run: MeasuredRun) -> None:
    predicted = predict_run(run)
    assert run.peak_gib <= predicted.peak_gib < 1.07 * run.peak_gib
    if run.tokens_per_second:
        assert predicted.tokens_per_second == pytest.approx(run.tokens_per_second, rel=0.15)


def test_enough_runs_were_measured() -> None:
    assert len(OWN_RUNS) >= 12
    assert sum(run.tokens_per_second is not None for run in OWN_RUNS) >= 12


@pytest.mark.parametrize(("precision", "width"), [("fp32", 4), ("bf16", 2)])
def test_kept_activations_are_those_that_a_real_step_saves(precision: str, width: int) -> None:
    """Counted in a real Llama with adapters; one more layer costs what the model says."""
    shape = ModelSpec(64, 160, 1, 4, 2, 16, 32, tied_embeddings=False)
    tokens = 256
    saved = [bytes_saved_for_backward(shape, layers, tokens, precision) for layers in (1, 3)]
    setting = StepConfig("transformers", "cpu", "none", precision, 1, False, False, "adamw_torch")  # type: ignore[arg-type]
    predicted = [
        predict_memory(setting, replace(shape, layers=layers), 4, tokens)["activations"] * 2**30
        for layers in (1, 3)
    ]
    assert predicted[1] - predicted[0] == pytest.approx(saved[1] - saved[0], rel=0.06)


def bytes_saved_for_backward(shape: ModelSpec, layers: int, tokens: int, precision: str) -> int:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    half = precision == "bf16"
    config = LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=shape.vocab,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16 if half else torch.float32)
    lora = LoraConfig(r=4, target_modules=list(TARGET_MODULES), task_type="CAUSAL_LM")
    adapted = get_peft_model(model, lora)
    own = {parameter.untyped_storage().data_ptr() for parameter in adapted.parameters()}
    kept: dict[int, tuple[int, Any]] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    ids = torch.zeros((1, tokens), dtype=torch.long)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
    ):
        adapted.base_model.model.model(input_ids=ids, use_cache=False)
    return sum(size for size, _ in kept.values())


# --- said to a person -------------------------------------------------------------------------


def test_the_description_says_counts_memory_time_and_reasons() -> None:
    plan = plan_for("kaggle-t4", named_machine("T4"))
    lines = describe(plan)
    text = "\n".join(lines)
    assert "41,943,040 of 8,030,261,248" in text
    assert f"{plan.peak_gib:.1f} GiB of {plan.limit_gib:.1f} GiB" in text
    assert sum(line.startswith("because") for line in lines) == len(plan.reasons)
    assert json.dumps(lines)


def test_a_deterministic_run_says_what_it_changes_on_a_gpu_and_nothing_elsewhere() -> None:
    codes = {
        machine: [one.code for one in plan_for("demo", machine, deterministic=True).reasons]
        for machine in (LAPTOP, named_machine("H100"))
    }
    assert [machine for machine in codes if "reason_deterministic" in codes[machine]] == [
        named_machine("H100")
    ]


def test_the_plan_counts_the_bundled_questions_and_items_that_there_are() -> None:
    samples = files("medcot.data") / "samples"
    for language, items in BUNDLED_ABILITIES.items():
        rows = {
            name: (samples / f"{name}_{language}.jsonl").read_text("utf-8").splitlines()
            for name in ("questions", "abilities")
        }
        assert (len(rows["questions"]), len(rows["abilities"])) == (BUNDLED_QUESTIONS, items)
    some, all_, more = (
        plan_for("kaggle-t4", named_machine("T4"), ability_samples=count).time_s["evaluate"]
        for count in (10, 72, 1000)
    )
    assert some < all_ == more


def test_the_plan_counts_every_seed() -> None:
    one, three = (plan_for("demo", LAPTOP, seeds=seeds).time_s for seeds in (1, 3))
    assert three["train"] == pytest.approx(3 / SHARED_CORES * one["train"], rel=0.01)
    # Of the seeds that are not kept, the losses alone are scored.
    assert three["evaluate"] == pytest.approx(1.35 * one["evaluate"], rel=0.01)


@pytest.mark.parametrize(
    ("machine", "changes", "at_once"),
    [
        (LAPTOP, {"seeds": 1}, 1),
        (LAPTOP, {"seeds": 3}, 3),
        (replace(LAPTOP, memory_gib=64.0), {"seeds": 9}, 4),
        (replace(LAPTOP, memory_gib=10.5), {"seeds": 3}, 2),
        (replace(LAPTOP, cpu_cores=1), {"seeds": 3}, 1),
        (LAPTOP, {"seeds": 3, "steps": 1}, 1),
        (replace(named_machine("2xT4"), processes=1), {"seeds": 3}, 2),
    ],
)
def test_seeds_train_at_the_same_time_as_memory_and_cores_hold_them(machine, changes, at_once):
    plan = plan_for("demo", machine, **changes)
    assert plan.seeds_at_once == at_once
    told = [reason for reason in plan.reasons if reason.code == "reason_seeds_on_cores"]
    assert len(told) == (at_once > 1 and plan.device == "cpu")
    if told:
        assert f"{at_once * plan.peak_gib:.1f} GiB in all" in str(told[0])


def test_presets_name_only_things_that_some_machine_can_do() -> None:
    for preset in PRESETS:
        machine = LAPTOP if preset == "demo" else named_machine("H100")
        assert plan_for(preset, machine, longest=1000).steps > 0


def test_a_t4_reads_weights_at_its_own_bandwidth_and_files_at_their_own_size() -> None:
    """The data sheet gives a T4 320 GB/s; an answer's tokens each read all weights."""
    slow = named_machine("T4")
    [gpu] = slow.gpus
    assert gpu.bandwidth_gb_s == 320
    quick = replace(slow, gpus=(replace(gpu, bandwidth_gb_s=1000.0),))
    here, there = (plan_for("kaggle-t4", one, ability_samples=0) for one in (slow, quick))
    rounds = -(-17 // here.answer_rows)
    assert rounds == 2
    # Before and after, 1,200 tokens of 17 prompts in two rounds, from 5.7 GB of 4-bit weights.
    more = here.time_s["evaluate"] - there.time_s["evaluate"]
    assert more == pytest.approx(2 * rounds * 1200 * (5.7 / 320 - 5.7 / 1000), rel=0.03)
    whole = plan_for("kaggle-t4", slow)
    quantized = plan_for("kaggle-t4", slow, model=f"{R1_LLAMA_8B}-bnb-4bit")
    # 16 GB and 5.7 GB at 1 GB/s.
    assert whole.time_s["load"] - quantized.time_s["load"] == pytest.approx(10.3, abs=0.3)
