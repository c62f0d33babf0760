"""Both engines, padded and packed, train the same steps of an 8B-shaped Llama with random weights.

    python bench/engines.py --data cot.jsonl --folder /tmp/engines

Needs a CUDA GPU, bitsandbytes and unsloth. Prints a Markdown table with the loss curves, their
largest difference, tokens per second and memory; the runs stay in the folder.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path

LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
}


def make_model(folder: Path, tokenizer: Path) -> None:
    """Write a Llama of 8B shape with random bf16 weights (16 GB), and the tokenizer beside it."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    if (folder / "config.json").exists():
        return
    tokens = AutoTokenizer.from_pretrained(tokenizer)
    ids = {
        "bos_token_id": tokens.bos_token_id,
        "eos_token_id": tokens.eos_token_id,
        "pad_token_id": tokens.pad_token_id,
    }
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(LlamaConfig(**LLAMA_8B, **ids))
    model.save_pretrained(folder, max_shard_size="4GB")
    tokens.save_pretrained(folder)


def train(name: str, model: Path, data: Path, out: Path, options: list[str]) -> list[dict]:
    """One ``medcot train`` in a process of its own; its events, or none where it failed."""
    command = [
        sys.executable, "-m", "medcot", "train", "--preset", "tutorial", "--wandb", "off",
        "--model", str(model), "--dataset", str(data), "--samples", "160", "--out", str(out / name),
        *options,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (out / f"{name}.log").write_text(done.stdout + done.stderr)
    if done.returncode:
        print(f"{name}: exit {done.returncode}: {(done.stderr or done.stdout)[-1500:]}", flush=True)
        return []
    lines = (out / name / "events.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True, help="a folder with a tokenizer")
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    import torch

    model = arguments.folder / "llama-8b-random"
    arguments.folder.mkdir(parents=True, exist_ok=True)
    os.environ["HF_HUB_OFFLINE"] = "1"
    subprocess.run(
        [sys.executable, "-c", "import sys; sys.path.insert(0, 'bench'); from pathlib import Path;"
         f"from engines import make_model; make_model(Path({str(model)!r}),"
         f" Path({str(arguments.tokenizer)!r}))"],
        check=True,
    )  # fmt: skip
    steps = ["--steps", str(arguments.steps)]
    packed = ["--packing", "on", "--micro-batch", "4"]
    variants = {
        "unsloth": ["--engine", "unsloth"],
        "transformers": ["--engine", "transformers"],
        "unsloth, packed": ["--engine", "unsloth", *packed],
        "transformers, packed": ["--engine", "transformers", *packed],
        "as planned": ["--engine", "auto", "--packing", "auto", "--micro-batch", "0",
                       "--checkpointing", "auto", "--quantization", "auto"],
    }  # fmt: skip
    runs = {
        name: train(name, model, arguments.data, arguments.folder, [*steps, *options])
        for name, options in variants.items()
    }
    print(f"\n{torch.cuda.get_device_name()}, {date.today()}, torch {torch.__version__}\n")
    print("| run | loss by step | tokens/s (median) | peak GiB | planned | planned GiB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for engine, events in runs.items():
        if events:
            losses = " ".join(f"{event['loss']:.4f}" for event in events)
            speed = median([event["tokens_per_second"] for event in events[2:]])
            memory = max(event["memory_gib"] for event in events)
            plan = json.loads((arguments.folder / engine / "plan.json").read_text())
            print(
                f"| {engine} | {losses} | {speed:,.0f} | {memory:.1f}"
                f" | {plan['tokens_per_second']:,.0f} | {plan['peak_gib']:.1f} |"
            )
    first = runs["unsloth"]
    for name, events in runs.items():
        gaps = [abs(one["loss"] - other["loss"]) for one, other in zip(first, events, strict=False)]
        if gaps:
            print(f"\n{name}: largest difference to unsloth's losses {max(gaps):.4f}")


if __name__ == "__main__":
    main()
