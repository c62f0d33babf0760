"""Training speed and memory at 8B shape: this project against the tutorial's recipe and plain TRL.

    python bench/training.py --data cot.jsonl --tokenizer DIR --folder /tmp/training

Needs a CUDA GPU of 40 GiB or more, bitsandbytes and unsloth. A Llama of 8B shape with random
weights is made and saved; each stack then trains on the same rows, in the same order, 8 rows per
optimizer step, in a process of its own; on one GPU one after the other, on two GPUs this project on
the first and the others on the second, and then both GPUs together. Prints Markdown tables;
``results.json`` in the folder has everything that was measured, with what the planner had
predicted. Stacks for which no time is left are named as not run.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

from engines import LLAMA_8B
from training_tables import report

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# For the variants that are deterministic, which share a process with the others.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

CAP_GIB = 14.5
"""What a process may have where a T4 is stood in for."""
NEW_TOKENS = 64
STEPS = 20
"""Of the learning rate's schedule; some stacks are stopped earlier."""

# name, settings beyond the tutorial's, memory limit in GiB
FP8 = {"quantization": "fp8", "checkpointing": "off"}
SIXTEEN_BIT = [
    ("8 x 1", {"micro_batch": 8, "checkpointing": "off"}, None),
    ("fp8, 8 x 1", FP8 | {"micro_batch": 8}, None),
    ("fp8, 8 x 2", FP8 | {"micro_batch": 8, "batch": 16}, None),
    ("fp8, 4 x 2", FP8 | {"micro_batch": 4}, None),
    ("fp8, 8 x 1, all recomputed", FP8 | {"micro_batch": 8, "checkpointing": "on"}, None),
    ("16 x 1", {"micro_batch": 16, "batch": 16, "checkpointing": "off"}, None),
    ("8 x 2", {"micro_batch": 8, "batch": 16, "checkpointing": "off"}, None),
    ("8 x 1, all recomputed", {"micro_batch": 8, "checkpointing": "on"}, None),
    ("4 x 2", {"micro_batch": 4, "checkpointing": "off"}, None),
    ("4 x 2, all recomputed", {"micro_batch": 4, "checkpointing": "on"}, None),
    ("2 x 4", {"micro_batch": 2, "checkpointing": "off"}, None),
    ("8 x 1, rank 64", {"micro_batch": 8, "rank": 64, "checkpointing": "off"}, None),
    (
        "8 x 1, deterministic",
        {"micro_batch": 8, "checkpointing": "off", "deterministic": True},
        None,
    ),
    ("fp8, 8 x 1, deterministic", FP8 | {"micro_batch": 8, "deterministic": True}, None),
    ("8 x 1 in 30 GiB", {"micro_batch": 8}, 30.0),
]
FOUR_BIT = [
    ("8 x 1", {"micro_batch": 8}, CAP_GIB),
    ("as planned", {}, CAP_GIB),
    ("4 x 2", {"micro_batch": 4}, CAP_GIB),
    ("8 x 1, all recomputed", {"micro_batch": 8, "checkpointing": "on"}, None),
    ("8 x 1, none recomputed", {"micro_batch": 8, "checkpointing": "off"}, None),
    ("4 x 2, none recomputed", {"micro_batch": 4, "checkpointing": "off"}, None),
]


class Bench:
    """One stack's process: its rows, its results so far."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.folder, self.name, self.turn = arguments.folder, arguments.worker, arguments.worker
        self.model = self.folder / "model"
        self.data, self.variants = arguments.data, arguments.variants
        self.started = time.monotonic()
        self.results: dict[str, Any] = {"runs": []}

    def say(self, *words: Any) -> None:
        print(f"[{self.name} {time.monotonic() - self.started:6.1f}]", *words, flush=True)

    def config(self, **changes: Any) -> Any:
        from medcot.config.presets import make_config

        values = {
            "model": str(self.model), "dataset": str(self.data), "samples": 1000, "wandb": "off",
            "test_samples": 1, "test_fraction": 0.05, "save_steps": 1000, "steps": STEPS,
            "engine": "fused", "micro_batch": 0, "packing": "auto", "checkpointing": "auto",
            "quantization": "none",
        }  # fmt: skip
        return make_config("tutorial", values | changes)

    def prepare(self, config: Any) -> Any:
        from medcot.listener import Listener
        from medcot.pipeline.prepare import prepare
        from medcot.runs.directory import RunDirectory

        return prepare(config, RunDirectory(self.folder / "runs" / self.name), Listener())

    def wait_for_turn(self) -> None:
        while not (self.folder / f"go-{self.turn}").exists():
            time.sleep(0.2)
        self.started = time.monotonic()

    def keep(self) -> None:
        text = json.dumps(self.results)
        (self.folder / f"{self.name}.json").write_text(text)
        if out := os.environ.get("OUT"):
            Path(out, f"{self.name}.json").write_text(text)


def random_model(dtype: str, quantized: bool) -> Any:
    """The model of the folder, made again on the GPU: the same weights without reading a disk."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(LlamaConfig(**LLAMA_8B))
    torch.set_default_dtype(torch.float32)
    model = model.to(getattr(torch, dtype)).eval()
    model.generation_config.pad_token_id = 0
    if quantized:
        import bitsandbytes as bnb

        for module in list(model.model.modules()):
            for name, linear in list(module.named_children()):
                if type(linear) is torch.nn.Linear:
                    with torch.device("meta"):
                        coarse = bnb.nn.Linear4bit(
                            linear.in_features, linear.out_features, bias=False,
                            compute_dtype=linear.weight.dtype, quant_type="nf4",
                        )  # fmt: skip
                    coarse.weight = bnb.nn.Params4bit(
                        linear.weight.data, requires_grad=False, quant_type="nf4"
                    ).to("cuda")
                    setattr(module, name, coarse)
        model.is_loaded_in_4bit = True
    return model


def save_model(arguments: argparse.Namespace) -> None:
    from transformers import AutoTokenizer

    folder = arguments.folder / "model"
    model = random_model("bfloat16", quantized=False)
    AutoTokenizer.from_pretrained(arguments.tokenizer).save_pretrained(folder)
    model.config.save_pretrained(folder)
    # Enough for those that make the weights themselves.
    (arguments.folder / "described").touch()
    model.save_pretrained(folder, max_shard_size="4GB")


def train_fused(bench: Bench, prepared: Any, loaded: Any, variants: list[Any], stop: int) -> None:
    """Each variant by ``fit`` up to step ``stop``, beside what the planner says of it."""
    import torch

    for variant in variants:
        guarded(bench, train_variant, bench, prepared, loaded, variant, stop)
    torch.cuda.set_per_process_memory_fraction(1.0)


def train_variant(
    bench: Bench, prepared: Any, loaded: Any, variant: Any, stop: int, hear: Any = None
) -> None:
    """One variant; with ``hear``, which is told of every step, its times are not kept."""
    import torch

    from medcot.engines import loading as models
    from medcot.runs.directory import RunDirectory
    from medcot.training.fit import fit

    name, changes, limit = variant
    total_gib = torch.cuda.mem_get_info()[1] / 2**30
    config = prepared.config.model_copy(update=changes)
    plan = plan_of(config, prepared, limit, total_gib)
    if hasattr(loaded.model, "unload"):
        loaded.model = loaded.model.unload()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    bench.say(f"{torch.cuda.memory_allocated() / 2**30:.2f} GiB before {name}")
    torch.cuda.set_per_process_memory_fraction(min(1.0, (limit or total_gib) / total_gib))
    directory = RunDirectory(
        bench.folder / "runs" / f"{bench.name} {name}{' watched' * bool(hear)}"
    )
    directory.create(config)
    models.add_adapter(loaded, config, plan)
    events: list[Any] = []

    def on_event(event: Any) -> None:
        events.append(event)
        if hear:
            hear()

    try:
        result = fit(
            loaded, prepared.rows, config, plan, directory, on_event, lambda: len(events) >= stop
        )
        changed = result.plan != plan
    except Exception as error:  # noqa: BLE001 - the next variant may do
        bench.say(name, type(error).__name__, str(error)[:300])
        changed = True
    if not hear:
        note(bench, name, plan, events, changed)


def plan_of(config: Any, prepared: Any, limit: float | None, total_gib: float) -> Any:
    """The plan for the whole GPU or a part of it: not what is free now, with a model in it."""
    from medcot.data.tokenization import prefix_length
    from medcot.hardware.machine import detect_machine
    from medcot.planning.constraints import CUDA_CONTEXT_GIB
    from medcot.planning.model_specs import find_model_spec
    from medcot.planning.plan import make_plan

    machine = detect_machine()
    room = limit + CUDA_CONTEXT_GIB if limit else total_gib
    here = replace(machine, gpus=tuple(replace(gpu, memory_gib=room) for gpu in machine.gpus))
    rows = [row.prompt_ids for row in prepared.rows]
    lengths = [len(row) for row in prepared.rows]
    return make_plan(
        config, here, find_model_spec(config), len(lengths), sum(lengths) / len(lengths),
        max(lengths), prefix_length(rows),
    )  # fmt: skip


def note(bench: Bench, name: str, plan: Any, events: list[Any], changed: bool) -> None:
    rows = [asdict(event) if not isinstance(event, dict) else event for event in events]
    speeds = sorted(row["tokens_per_second"] for row in rows[3:])
    if not speeds:
        return
    middle = speeds[len(speeds) // 2]
    tokens = (rows[-1]["tokens"] - rows[2]["tokens"]) / (len(rows) - 3)
    seconds = sum(
        (b["tokens"] - a["tokens"]) / b["tokens_per_second"] for a, b in pairwise(rows[2:])
    ) / (len(rows) - 3)
    bench.results["runs"].append(
        {
            "name": name, "speed": middle, "low": speeds[0], "high": speeds[-1],
            "peak_gib": rows[-1]["memory_gib"], "losses": [row["loss"] for row in rows],
            "tokens_per_step": tokens, "step_s": seconds, "plan": plan.to_json(),
            "fell_back": changed,
        }
    )  # fmt: skip
    bench.say(
        f"{name}: {middle:,.0f} tokens/s ({speeds[0]:,.0f} to {speeds[-1]:,.0f}),"
        f" {rows[-1]['memory_gib']:.2f} GiB; planned {plan.tokens_per_second:,.0f},"
        f" {plan.peak_gib:.2f} GiB; {plan.recomputed_layers} recomputed"
        + ("; fell back" if changed else "")
    )
    bench.keep()


def loaded_model(model: Any, tokenizer: Any, rows: int) -> Any:
    from medcot.engines.base import LoadedModel, settle_pad_token
    from medcot.engines.fused.engine import FusedEngine

    settle_pad_token(tokenizer)
    return LoadedModel(model, tokenizer, FusedEngine(), "cuda", rows)


def work_fused(bench: Bench, dtype: str, quantized: bool, variants: list[Any], stop: int) -> None:
    """This project's own pass, in all variants of one kind of weights."""
    import torch

    prepared, loaded = begin_fused(bench, dtype, quantized)
    device = torch.device("cuda", torch.cuda.current_device())
    bench.say("attention", choose_attention_name(device, dtype))
    if bench.variants:
        chosen = [variant for variant in variants if variant[0] in bench.variants]
        train_fused(bench, prepared, loaded, chosen, 6)
        return
    train_fused(bench, prepared, loaded, variants[:1], stop)
    guarded(bench, profile, bench, prepared, loaded, variants[0][1], variants[0][0])
    if not quantized:
        train_fused(bench, prepared, loaded, variants[1:2], stop)
        guarded(bench, profile, bench, prepared, loaded, variants[1][1], variants[1][0])
        variants = variants[1:]
        guarded(bench, answer_together, bench, prepared, loaded)
    # Longer where both GPUs together are compared with it.
    for variant in variants[1:]:
        train_fused(bench, prepared, loaded, [variant], 12 if variant[0].endswith("8 x 2") else 6)


def begin_fused(bench: Bench, dtype: str, quantized: bool) -> tuple[Any, Any]:
    import torch
    from transformers import AutoTokenizer

    import medcot.training.trainers.fused  # noqa: F401 - before its turn, as all imports

    bench.wait_for_turn()
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    precision = {"float16": "fp16", "bfloat16": "bf16"}[dtype]
    changes = {"quantization": "4bit" if quantized else "none", "precision": precision}
    prepared = bench.prepare(bench.config(**changes))
    tokenizer = AutoTokenizer.from_pretrained(bench.model)
    return prepared, loaded_model(random_model(dtype, quantized), tokenizer, 64)


def choose_attention_name(device: Any, dtype: str) -> str:
    import torch

    from medcot.engines.fused.ops import choose_ops
    from medcot.engines.fused.varlen_attention import choose_attention

    kernel = choose_attention(device, getattr(torch, dtype), 128).__name__
    return f"{kernel}, {choose_ops(device).__name__}"


def work_both(bench: Bench) -> None:
    """Both GPUs together, each with 8 rows of a step."""
    from medcot.distributed import comm

    if not comm.is_main():
        bench.name += " (second)"
    prepared, loaded = begin_fused(bench, "bfloat16", quantized=False)
    here = {"batch": 16, "micro_batch": 8, "checkpointing": "off"}
    variants = [
        ("8 x 1 on each", here, None),
        ("fp8, 8 x 1 on each", here | {"quantization": "fp8"}, None),
    ]
    train_fused(bench, prepared, loaded, variants, 12)
    comm.close()


def guarded(bench: Bench, work: Any, *arguments: Any) -> None:
    try:
        work(*arguments)
    except Exception:  # noqa: BLE001 - the rest is worth having
        bench.say(work.__name__, traceback.format_exc()[-1500:])


def profile(bench: Bench, prepared: Any, loaded: Any, changes: dict[str, Any], name: str) -> None:
    """Where a step's time goes, and a large product's ceiling."""
    from profiles import StepProfile, ceiling_tflops, print_python_time

    from medcot.engines.fused.packing import PackedCollator
    from medcot.engines.fused.stack import fused_forward

    watch = StepProfile()
    train_variant(bench, prepared, loaded, (name, changes, None), 6, watch.step_ended)
    found = watch.describe(bench.say) | {"ceiling_tflops": ceiling_tflops()}
    ids = prepared.rows[0].as_row()["input_ids"][:64]
    batch = {
        key: value.to("cuda") if hasattr(value, "to") else value
        for key, value in PackedCollator()([{"input_ids": ids, "labels": ids}]).items()
    }
    with fused_forward(loaded.model, 0, fp8=changes.get("quantization") == "fp8"):
        found["short_pass_ms"] = print_python_time(loaded.model, batch)
    bench.results.setdefault("profiles", {})[name] = found
    bench.say("profile", json.dumps(found))
    bench.keep()


def prompts_of(prepared: Any, tokenizer: Any, count: int) -> list[str]:
    return [tokenizer.decode(row.prompt_ids) for row in prepared.rows[:count]]


def answer_together(bench: Bench, prepared: Any, loaded: Any) -> None:
    """64 answers as evaluation gives them."""
    import torch

    from medcot.inference.generate import generate

    if hasattr(loaded.model, "unload"):
        loaded.model = loaded.model.unload()
    loaded.model.config.use_cache = True
    prompts = prompts_of(prepared, loaded.tokenizer, 64)
    for _ in range(2):
        torch.cuda.synchronize()
        started = time.perf_counter()
        answers = generate(loaded, prompts, NEW_TOKENS)
        seconds = time.perf_counter() - started
    tokens = sum(answer.tokens for answer in answers)
    bench.results["answers"] = {"prompts": 64, "tokens": tokens, "seconds": seconds}
    bench.say("answers", bench.results["answers"])
    bench.keep()


def work_unsloth(bench: Bench) -> None:
    """The tutorial's recipe, and its way of answering: one prompt at a time."""
    os.environ.pop("PYTORCH_CUDA_ALLOC_CONF")
    from medcot.engines.unsloth import UnslothEngine

    UnslothEngine().prepare_process()
    train_recipe(bench, "unsloth", 12, answer_alone)


def answer_alone(bench: Bench, prepared: Any, loaded: Any) -> None:
    from unsloth import FastLanguageModel

    FastLanguageModel.for_inference(loaded.model)
    seconds, tokens = 0.0, 0
    for index, prompt in enumerate(prompts_of(prepared, loaded.tokenizer, 3)):
        inputs = loaded.tokenizer([prompt], return_tensors="pt").to("cuda")
        started = time.perf_counter()
        output = loaded.model.generate(
            input_ids=inputs.input_ids, attention_mask=inputs.attention_mask,
            max_new_tokens=NEW_TOKENS, use_cache=True,
        )  # fmt: skip
        if index:  # the first one warms up
            seconds += time.perf_counter() - started
            tokens += output.shape[1] - inputs.input_ids.shape[1]
    bench.results["answers"] = {"prompts": 2, "tokens": tokens, "seconds": seconds}
    bench.say("answers", bench.results["answers"])
    bench.keep()


def work_plain(bench: Bench) -> None:
    os.environ.pop("PYTORCH_CUDA_ALLOC_CONF")
    train_recipe(bench, "transformers", 7, None)


def train_recipe(bench: Bench, engine: str, stop: int, after: Any) -> None:
    """The tutorial's settings by another engine, up to step ``stop``."""
    import bitsandbytes  # noqa: F401
    import trl.trainer.sft_trainer  # noqa: F401

    from medcot.engines import loading as models
    from medcot.training.fit import fit

    bench.wait_for_turn()
    recipe = {
        "engine": engine, "quantization": "4bit", "micro_batch": 2, "packing": "off",
        "checkpointing": "on",
    }  # fmt: skip
    prepared = bench.prepare(bench.config(**recipe))
    loaded = models.load_base(prepared.config, prepared.plan)
    bench.say("loaded")
    models.add_adapter(loaded, prepared.config, prepared.plan)
    events: list[Any] = []
    try:
        fit(
            loaded, prepared.rows, prepared.config, prepared.plan, prepared.directory,
            events.append, lambda: len(events) >= stop,
        )  # fmt: skip
    finally:
        note(bench, f"{engine}, the tutorial's settings", prepared.plan, events, False)
    if after:
        guarded(bench, after, bench, prepared, loaded)


WORKERS = {
    "fused-16bit": lambda bench: work_fused(bench, "bfloat16", False, SIXTEEN_BIT, STEPS),
    "fused-4bit-bf16": lambda bench: work_fused(bench, "bfloat16", True, FOUR_BIT[-1:], 12),
    "fused-4bit-fp16": lambda bench: work_fused(bench, "float16", True, FOUR_BIT, 12),
    "unsloth": work_unsloth,
    "plain": work_plain,
    "both": work_both,
}
FIRST_LANE = ("fused-16bit", "fused-4bit-bf16")
SECOND_LANE = ("unsloth", "fused-4bit-fp16", "plain")
FROM_FILES = ("unsloth", "plain")
BOTH_S = 60
"""What the last stage may need."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True, help="a folder with a tokenizer")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=3600, help="stop in time for this")
    parser.add_argument("--stacks", nargs="+", choices=[*WORKERS], default=[*WORKERS])
    parser.add_argument("--variants", nargs="+", help="of this project's stacks, and no profile")
    parser.add_argument("--worker", choices=[*WORKERS, "save"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker == "save":
        save_model(arguments)
    elif arguments.worker:
        WORKERS[arguments.worker](Bench(arguments))
    else:
        orchestrate(arguments)


def orchestrate(arguments: argparse.Namespace) -> None:
    """Every stack imports at once, and computes when it is its turn."""
    import torch

    gpus = min(2, torch.cuda.device_count())
    deadline = time.monotonic() + arguments.seconds
    arguments.folder.mkdir(parents=True, exist_ok=True)
    save = start(arguments, "save", "0")
    wanted = arguments.stacks
    first, second = (
        tuple(name for name in lane if name in wanted) for lane in (FIRST_LANE, SECOND_LANE)
    )
    both = gpus == 2 and "both" in wanted
    workers = {name: start(arguments, name, "0") for name in first}
    workers |= {name: start(arguments, name, str(gpus - 1)) for name in second}
    if both:
        workers["both"] = start(arguments, "both", "0,1")
    while save.poll() is None and not (arguments.folder / "described").exists():
        time.sleep(0.2)
    if not set(wanted) & set(FROM_FILES):
        save.terminate()  # the others make the weights themselves
    lanes = [first, second] if gpus == 2 else [(*first, *second)]
    not_run: list[str] = []
    last = deadline - (BOTH_S if both else 0)
    threads = [
        Thread(target=take_turns, args=(arguments.folder, lane, workers, save, last, not_run))
        for lane in lanes
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if both:
        take_turns(arguments.folder, ("both",), workers, save, deadline, not_run)
    report(arguments.folder, WORKERS, not_run)


def start(arguments: argparse.Namespace, name: str, gpus: str) -> subprocess.Popen[bytes]:
    own = [__file__, "--data", str(arguments.data), "--tokenizer", str(arguments.tokenizer),
           "--folder", str(arguments.folder), "--worker", name,
           *(["--variants", *arguments.variants] if arguments.variants else [])]  # fmt: skip
    launcher = [sys.executable]
    if "," in gpus:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen([*launcher, *own], env=os.environ | {"CUDA_VISIBLE_DEVICES": gpus})


def take_turns(
    folder: Path,
    lane: Sequence[str],
    workers: dict[str, subprocess.Popen[bytes]],
    save: subprocess.Popen[bytes],
    deadline: float,
    not_run: list[str],
) -> None:
    for name in lane:
        if name in FROM_FILES:
            save.wait()
        try:
            (folder / f"go-{name}").touch()
            workers[name].wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            workers[name].terminate()
            not_run.append(f"{name} (not or not to its end)")


if __name__ == "__main__":
    main()
