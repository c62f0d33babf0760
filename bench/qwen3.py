"""The fused engine against transformers' on Qwen3 of 0.6B shape with random weights.

    python bench/qwen3.py --data cot.jsonl --tokenizer DIR --folder /tmp/qwen3

Needs a CUDA GPU of 40 GiB or more, and bitsandbytes. All variants train the same rows in the same
order, 8 per step, one after the other in one process; the second model sees 128 tokens back in
every other layer. Prints losses, tokens per second and memory of each, planned and measured, and
how far apart two engines, or two deterministic trainings, are.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import traceback
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

SHAPE = {
    "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
    "max_position_embeddings": 40960, "tie_word_embeddings": True,
}  # fmt: skip
WINDOWS = {
    "use_sliding_window": True, "sliding_window": 128,
    "layer_types": ["full_attention", "sliding_attention"] * 14,
}  # fmt: skip
BF16 = {"precision": "bf16", "quantization": "none"}
FP16 = {"precision": "fp16", "quantization": "4bit"}
FP8 = {"precision": "bf16", "quantization": "fp8"}
FUSED, PLAIN = {"engine": "fused"}, {"engine": "transformers"}

# name, model, settings
VARIANTS: list[tuple[str, str, dict[str, Any]]] = [
    ("fused, 16-bit", "plain", FUSED | BF16),
    ("transformers, 16-bit", "plain", PLAIN | BF16),
    ("fused, 4-bit fp16", "plain", FUSED | FP16),
    ("transformers, 4-bit fp16", "plain", PLAIN | FP16),
    ("fused, 16-bit, deterministic", "plain", FUSED | BF16 | {"deterministic": True}),
    ("fused, 16-bit, deterministic again", "plain", FUSED | BF16 | {"deterministic": True}),
    ("fused, 16-bit, all recomputed", "plain", FUSED | BF16 | {"checkpointing": "on"}),
    ("fused, fp8", "plain", FUSED | FP8),
    ("fused, 16-bit, windows", "windows", FUSED | BF16),
    ("transformers, 16-bit, windows", "windows", PLAIN | BF16),
]
COMPARED = [
    ("fused, 16-bit", "transformers, 16-bit"),
    ("fused, 4-bit fp16", "transformers, 4-bit fp16"),
    ("fused, 16-bit, deterministic", "fused, 16-bit, deterministic again"),
    ("fused, 16-bit, all recomputed", "fused, 16-bit"),
    ("fused, fp8", "fused, 16-bit"),
    ("fused, 16-bit, windows", "transformers, 16-bit, windows"),
    ("fused, 16-bit, windows", "fused, 16-bit"),
]


def make_models(folder: Path, tokenizer: Path) -> None:
    """Write the model twice, with the same random weights: with windows and without."""
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    tokens = AutoTokenizer.from_pretrained(tokenizer)
    ids = {
        "bos_token_id": tokens.bos_token_id,
        "eos_token_id": tokens.eos_token_id,
        "pad_token_id": tokens.pad_token_id,
    }
    for name, changes in (("plain", {}), ("windows", WINDOWS)):
        torch.manual_seed(0)
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = Qwen3ForCausalLM(Qwen3Config(**SHAPE | changes, **ids))
        for parameter, tensor in model.named_parameters():
            if "norm" in parameter:  # A norm that scales nothing would hide a mistake.
                torch.nn.init.uniform_(tensor, 0.5, 1.5)
        model.to(torch.bfloat16).save_pretrained(folder / name)
        tokens.save_pretrained(folder / name)


def train(arguments: argparse.Namespace, name: str, model: str, changes: dict[str, Any]) -> Any:
    """Train one variant; return its events and its plan."""
    from medcot.config.presets import make_config
    from medcot.engines import loading as models
    from medcot.listener import Listener
    from medcot.pipeline.prepare import prepare
    from medcot.runs.directory import RunDirectory
    from medcot.training.fit import fit

    values = {
        "model": str(arguments.folder / model), "dataset": str(arguments.data), "samples": 200,
        "steps": arguments.steps, "epochs": None, "batch": 8, "wandb": "off", "test_samples": 1,
        "test_fraction": 0.05, "save_steps": 1000, "validation_samples": 0,
    }  # fmt: skip
    directory = RunDirectory(arguments.folder / name.replace(", ", "-").replace(" ", "-"))
    prepared = prepare(make_config("gpu-24g", values | changes), directory, Listener())
    loaded = models.load_base(prepared.config, prepared.plan)
    models.add_adapter(loaded, prepared.config, prepared.plan)
    events: list[Any] = []
    try:
        fit(
            loaded, prepared.rows, prepared.config, prepared.plan, prepared.directory,
            events.append,
        )  # fmt: skip
    finally:
        models.release(loaded)
    return events, prepared.plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True, help="a folder with a tokenizer")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=280, help="start nothing after these")
    arguments = parser.parse_args()
    import torch
    import transformers

    started = time.monotonic()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    make_models(arguments.folder, arguments.tokenizer)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{device}, {date.today()}, torch {torch.__version__}, transformers "
          f"{transformers.__version__}; models made in {time.monotonic() - started:.0f} s\n"
          "| variant | losses | tokens/s | planned | GiB | planned | layers recomputed | rows |\n"
          "| --- | --- | --: | --: | --: | --: | --: | --: |", flush=True)  # fmt: skip
    losses: dict[str, list[float]] = {}
    for name, model, changes in VARIANTS:
        if time.monotonic() - started > arguments.seconds:
            print(f"| {name} | no time left | | | | | | |", flush=True)
            continue
        try:
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            events, plan = train(arguments, name, model, changes)
        except Exception:  # noqa: BLE001 - the others are worth having
            print(f"| {name} | {traceback.format_exc()[-1500:]} |", flush=True)
            continue
        losses[name] = [event.loss for event in events]
        speeds = sorted(event.tokens_per_second for event in events[3:])
        memory = max(event.memory_gib for event in events)
        print(f"| {name} | {' '.join(f'{loss:.4f}' for loss in losses[name])}"
              f" | {speeds[len(speeds) // 2]:,.0f} | {plan.tokens_per_second:,.0f} | {memory:.2f}"
              f" | {plan.peak_gib:.2f} | {plan.recomputed_layers}"
              f" | {plan.micro_batch} x {plan.accumulation} |", flush=True)  # fmt: skip
    print()
    for one, other in COMPARED:
        if one in losses and other in losses:
            gap = max(abs(a - b) for a, b in zip(losses[one], losses[other], strict=True))
            print(f"{one} and {other}: losses differ by {gap:.4f} at most")
    found = json.dumps(losses)
    (arguments.folder / "losses.json").write_text(found)
    if out := os.environ.get("OUT"):
        Path(out, "qwen3_losses.json").write_text(found)


if __name__ == "__main__":
    main()
