"""Weights split over two processes on the CPU (gloo): the run of one process, and resume."""

import json

import pytest
import torch
from safetensors.torch import load_file

from medcot.config.presets import make_config
from medcot.errors import InputError
from medcot.hardware.gpu_specs import GPU_MODELS
from medcot.hardware.machine import Machine, detect_machine
from medcot.pipeline.run import run
from medcot.planning.memory_model import StepConfig, kept_weight_bytes, predict_memory, weight_bytes
from medcot.planning.model_specs import ModelSpec
from medcot.planning.plan import make_plan
from medcot.runs.directory import RunDirectory
from tests.support.fakes import make_tiny_model
from tests.support.two_processes import (
    SETTINGS,
    assert_same_training,
    finish,
    rows,
    start_two,
)

STORY = """
import json, os, shutil, sys
from medcot.distributed import comm
from medcot.pipeline.worker import run_worker
from medcot.config.presets import make_config
from medcot.listener import Listener
from medcot.pipeline.run import evaluate_only, run
from medcot.runs.directory import RunDirectory
from accelerate import Accelerator
from torch.nn.parallel import DistributedDataParallel

def refuse(*arguments, **options):
    raise AssertionError("DDP was asked to wrap a split model")

# accelerate checks for what DDP refuses on GPUs alone; here it takes the processes for such.
Accelerator.multi_device = property(lambda self: True)
DistributedDataParallel.__init__ = refuse

def again():
    # As the launcher set it: each of these is a command of its own.
    os.environ["ACCELERATE_USE_FSDP"] = "true"

if comm.is_main():
    directory = RunDirectory(os.path.abspath("run"))
    config = make_config("demo", json.loads(sys.argv[1]))
    run(config, directory)
    shutil.copytree("run", "whole")
    for name in ("training.json", "report.json", "evaluation/after.jsonl"):
        (directory.path / name).unlink()
    for name in ("adapter", "checkpoints/checkpoint-6"):
        shutil.rmtree(directory.path / name)
    again()
    run(config, directory, resume=True)
    shutil.copytree("run", "resumed")
    (directory.path / "evaluation" / "after.jsonl").unlink()
    again()
    evaluate_only(directory, Listener())
    comm.broadcast(None)
else:
    run_worker(Listener())
comm.close()
"""

IN_4_BITS = """
import sys, types
import torch
from torch.distributed import is_initialized
from medcot.distributed import comm
from medcot.engines.fsdp.model import PackedLinear, build_split
from medcot.engines.fsdp.safetensors_reader import Checkpoint
from medcot.engines.base import Location
from transformers import AutoConfig

where = Location(sys.argv[1])
for dtype in (torch.float32, torch.bfloat16):
    config = AutoConfig.from_pretrained(where.source)
    whole, split = (
        build_split(
            config,
            Checkpoint(where),
            types.SimpleNamespace(gpus=count, quantization="4bit", attention="sdpa"),
            dtype,
            torch.device("cpu"),
        )
        for count in (1, 2)
    )
    layer = split.model.layers[0].mlp.up_proj
    assert isinstance(layer, PackedLinear)
    assert layer.weight.dtype == dtype
    # Two weights a byte, half of them here.
    own = layer.weight.to_local()
    assert own.numel() * own.itemsize * 4 == layer.in_features * layer.out_features
    ids = torch.arange(40).view(2, 20) + 5
    starts = []
    def keep(module, arguments, output):
        starts.append(output.requires_grad_())
    hooks = [m.get_input_embeddings().register_forward_hook(keep) for m in (whole, split)]
    logits = [model(ids).logits for model in (whole, split)]
    assert torch.equal(*logits)
    gradients = [
        torch.autograd.grad(out.float().square().mean(), start)[0]
        for out, start in zip(logits, starts)
    ]
    assert torch.equal(*gradients)
    assert gradients[0].abs().sum() > 0
    for hook in hooks:
        hook.remove()
    found = [m.generate(ids, max_new_tokens=4, do_sample=False) for m in (whole, split)]
    assert torch.equal(*found)
torch.distributed.destroy_process_group()
print("done")
"""


@pytest.fixture(scope="module")
def untied_model(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("untied"), tie_word_embeddings=False)


def test_sharded_weights_give_the_run_of_one_process_also_when_resumed(
    tmp_path, untied_model, forks, monkeypatch
):
    settings = SETTINGS | {"model": str(untied_model), "micro_batch": 1, "checkpointing": "on"}
    alone = RunDirectory(tmp_path / "alone")
    expected = run(make_config("demo", settings), alone)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    started = start_two(forks, ["-c", STORY, json.dumps(settings)], tmp_path)
    (code, _, errors), other = finish(forks, started, within_s=200)
    assert other[0] == 0, other[2]
    assert code == 0, errors
    assert list((tmp_path / "process-1").iterdir()) == []
    for name in ("whole", "resumed", "run"):
        folder = tmp_path / "process-0" / name
        plan = json.loads((folder / "plan.json").read_text())
        assert (plan["split"], plan["gpus"], plan["engine"]) == (True, 2, "transformers")
        assert (plan["accumulation"], plan["checkpointing"]) == (2, True)
        assert_same_training(folder, alone)
        report = json.loads((folder / "report.json").read_text())
        for phase in ("before", "after"):
            assert report[phase]["nll"] == pytest.approx(getattr(expected, phase).nll, abs=1e-4)
            ours, theirs = (
                rows(place / "evaluation" / f"{phase}.jsonl") for place in (alone.path, folder)
            )
            assert [row["output"] for row in ours] == [row["output"] for row in theirs]
    assert_plain_peft_loads(folder / "adapter", untied_model)


def assert_plain_peft_loads(folder, model):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model)
    tuned = PeftModel.from_pretrained(base, str(folder)).state_dict()
    for name, values in load_file(folder / "adapter_model.safetensors").items():
        assert torch.equal(tuned[name.replace(".weight", ".default.weight")], values)


def test_nf4_weights_sharded_over_two_processes_compute_the_same(tmp_path, untied_model, forks):
    pytest.importorskip("bitsandbytes")
    pair = finish(forks, start_two(forks, ["-c", IN_4_BITS, str(untied_model)], tmp_path))
    for code, said, errors in pair:
        assert code == 0, errors
        assert "done" in said


LLAMA_70B = ModelSpec(8192, 28672, 80, 64, 8, 128, 128256, tied_embeddings=False)


def machine(name, gpus, split):
    found = (GPU_MODELS[name].as_gpu(),) * gpus
    packages = ("bitsandbytes", "unsloth")
    return Machine(found, 32, 200.0, "Linux", packages, gpus if split else 1, split=split)


def plan_70b(on, **changes):
    return make_plan(make_config("gpu-24g", changes), on, LLAMA_70B, 500, 700.0, 1024)


def test_the_planner_counts_a_part_of_the_weights_and_the_layer_at_hand():
    plan = plan_70b(machine("A100", 2, split=True))
    assert (plan.split, plan.engine, plan.quantization) == (True, "transformers", "4bit")
    setting = StepConfig(
        "transformers", "cuda", "4bit", "bf16", 1, False, 80, "adamw_8bit", shards=2
    )
    whole = weight_bytes(LLAMA_70B, "4bit", 2.0)
    assert 0.5 * whole < kept_weight_bytes(setting, LLAMA_70B) < 0.53 * whole
    assert plan.memory_gib["weights"] == pytest.approx(whole / 2**30 / 2, rel=0.06)
    layer = LLAMA_70B.linear_parameters / 80 / 2 / 2**30
    assert plan.memory_gib["workspace"] > 2 * layer


def test_the_plan_of_a_large_model_is_not_below_what_it_was_seen_to_use():
    setting = StepConfig("transformers", "cuda", "4bit", "bf16", 2, False, 80, "adamw_8bit")
    planned = sum(predict_memory(setting, LLAMA_70B, 16, 2 * 768).values())
    assert 42.8 <= planned <= 1.03 * 42.8


def test_a_model_that_fits_split_alone_is_refused_with_the_command_that_splits_it():
    with pytest.raises(InputError) as refused:
        plan_70b(machine("L40S", 2, split=False), max_length=1024)
    assert "configs/accelerate/fsdp-qlora.yaml --num_processes 2 -m medcot run" in str(
        refused.value
    )
    assert plan_70b(machine("L40S", 2, split=True)).peak_gib < 40.7


def test_a_model_that_does_not_fit_split_either_is_refused():
    with pytest.raises(InputError, match="with the weights split over 2"):
        plan_70b(machine("T4", 2, split=True), precision="fp16")


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"engine": "fused"}, "--engine"), ({"engine": "unsloth"}, "--engine"),
     ({"quantization": "8bit"}, "--quantization")],
)  # fmt: skip
def test_what_cannot_be_split_is_refused_in_one_line(changes, named):
    with pytest.raises(InputError) as refused:
        plan_70b(machine("A100", 2, split=True), **changes)
    assert str(refused.value).startswith(named)
    assert "(FSDP)" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_launcher_with_fsdp_is_noticed(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not detect_machine().split
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert detect_machine().split
