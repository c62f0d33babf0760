"""A model that fits no single GPU, split over two: memory, speed and losses against one GPU.

    python bench/fsdp.py --data cot.jsonl --tokenizer DIR --folder /tmp/fsdp

Needs two CUDA GPUs of 80 GB and bitsandbytes. Two models with random weights, trained by `medcot`
under `accelerate launch --config_file configs/accelerate/fsdp-qlora.yaml` and by one process:

- of 70B shape in NF4, its weights made on the GPU as they are read: on both GPUs with 40 GiB each,
  on one with 40 GiB, where it cannot fit, and on one with all of its memory;
- of 8B shape, from files: on both GPUs, and on one by the engine `transformers` as it always was.

Prints what is known as soon as it is, and a Markdown table at the end; runs that no time is left
for are named. `--small` trains models of a few thousand weights on CPUs, to try this file itself.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import zlib
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from threading import Thread
from typing import Any

from engines import LLAMA_8B

LLAMA_70B = LLAMA_8B | {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}
TINY = LLAMA_8B | {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CAP_GIB = 40.0
NEEDS_S = 25.0
"""Without so much time left no job is begun."""
ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs/accelerate/fsdp-qlora.yaml"
OPTIONS = {
    "preset": "tutorial",
    "engine": "transformers",
    "wandb": "off",
    "samples": 64,
    "batch": 4,
    "micro_batch": 2,
    "checkpointing": "on",
    "max_length": 768,
    "warmup_steps": 1,
    "save_steps": 1000,
    "test_samples": 4,
    "generate_samples": 2,
    "max_new_tokens": 8,
    "mcq": "sample",
    "mcq_samples": 4,
}


@dataclass(frozen=True)
class Job:
    """One training: which model, by how many processes on which GPUs, within how much memory."""

    name: str
    model: str
    gpus: tuple[int, ...]
    steps: int
    cap_gib: float = 0.0
    made: bool = False
    command: str = "train"


class Bench:
    """Starts jobs, prints what they say, and ends those that take too long."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.folder = arguments, arguments.folder
        self.started = time.monotonic()
        self.left: list[str] = []

    def say(self, *words: Any) -> None:
        print(f"[{time.monotonic() - self.started:6.1f}]", *words, flush=True)

    def remaining(self) -> float:
        return self.arguments.seconds - (time.monotonic() - self.started)

    def run_beside(self, *lanes: list[Job]) -> None:
        """Lanes side by side, the jobs of one one after the other."""
        threads = [Thread(target=self.run, args=(lane,)) for lane in lanes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def run(self, jobs: list[Job]) -> None:
        """One after the other, as long as time is left."""
        for job in jobs:
            if self.remaining() < NEEDS_S:
                self.left.append(job.name)
                continue
            process = self._start(job)
            try:
                code = process.wait(timeout=max(1.0, self.remaining()))
                self.say(f"{job.name}: exit {code}")
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                self.say(f"{job.name}: ended, out of time")

    def _start(self, job: Job) -> subprocess.Popen[str]:
        small = self.arguments.small
        options = OPTIONS | {"model": str(self.folder / job.model), "dataset": self.arguments.data}
        options |= {"steps": job.steps, "out": str(self.folder / "runs" / job.name)}
        options |= {"preset": "demo"} if small else {"quantization": "4bit"}
        worker = [str(Path(__file__)), "--worker", job.name, "--folder", str(self.folder)]
        worker += ["--cap", str(job.cap_gib)] + ["--made"] * job.made + ["--small"] * small
        words = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
        launcher = [sys.executable]
        if len(job.gpus) > 1:
            launcher += ["-m", "accelerate.commands.launch", "--config_file", str(CONFIG)]
            launcher += ["--num_processes", str(len(job.gpus))]
        path = os.pathsep.join(filter(None, [str(ROOT), os.getenv("PYTHONPATH")]))
        process = subprocess.Popen(
            [*launcher, *worker, "--", job.command, *words],
            env=os.environ
            | {"CUDA_VISIBLE_DEVICES": ",".join(map(str, job.gpus)), "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        Thread(target=self._echo, args=(job.name, process), daemon=True).start()
        return process

    def _echo(self, name: str, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with (self.folder / f"{name}.log").open("w") as log:
            for line in process.stdout:
                log.write(line)
                log.flush()
                if any(word in line for word in ("score", "train ", "medcot:", "rank ", "Error")):
                    self.say(f"{name}: {line.rstrip()[:300]}")

    def events(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / "runs" / name / "events.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def facts(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(p.read_text()) for p in sorted(self.folder.glob(f"{name}.rank-*.json"))]


def table(bench: Bench, jobs: list[Job]) -> None:
    print("\n| run | loaded, GiB per GPU | peak, GiB per GPU | planned | tokens/s | losses |")
    print("| --- | ---: | ---: | ---: | ---: | --- |")
    for job in jobs:
        facts, events = bench.facts(job.name), bench.events(job.name)
        if not facts:
            continue
        loaded = ", ".join(f"{one['loaded_gib']:.1f}" for one in facts)
        peak = ", ".join(f"{one['peak_gib']:.1f}" for one in facts)
        speeds = sorted(event["tokens_per_second"] for event in events[1:])
        speed = f"{speeds[len(speeds) // 2]:,.0f}" if speeds else "-"
        path = bench.folder / "runs" / job.name / "plan.json"
        planned = f"{json.loads(path.read_text())['peak_gib']:.1f}" if path.exists() else "-"
        losses = " ".join(f"{event['loss']:.4f}" for event in events)
        losses = losses or facts[0]["error"][:100]
        print(f"| {job.name} | {loaded} | {peak} | {planned} | {speed} | {losses} |")


def compare(bench: Bench, one: Job, two: Job) -> None:
    pairs = list(zip(bench.events(one.name), bench.events(two.name), strict=False))
    if pairs:
        worst = max(abs(a["loss"] - b["loss"]) for a, b in pairs)
        same = all(a["tokens"] == b["tokens"] for a, b in pairs)
        print(
            f"\n{two.name} against {one.name}: {len(pairs)} steps, "
            f"{'the same' if same else 'OTHER'} tokens, largest difference of a loss {worst:.4f}"
        )


def write_config(folder: Path, shape: dict[str, Any], tokenizer: Path) -> None:
    """A model's folder without weights."""
    from transformers import AutoTokenizer, LlamaConfig

    tokens = AutoTokenizer.from_pretrained(tokenizer)
    ids = {
        f"{name}_token_id": getattr(tokens, f"{name}_token_id") for name in ("bos", "eos", "pad")
    }
    config = LlamaConfig(**shape, **ids, dtype="bfloat16", architectures=["LlamaForCausalLM"])
    config.save_pretrained(folder)
    tokens.save_pretrained(folder)


class RandomWeights:
    """Reads like a checkpoint: normal weights by a seed of their name, made on the GPU."""

    def __init__(self, where: Any) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(where.source))
        self.shapes = {name: value.shape for name, value in model.state_dict().items()}

    def names(self, prefix: str) -> list[str]:
        return [name for name in self.shapes if name.startswith(prefix)]

    def read(self, name: str, device: Any) -> Any:
        import torch

        if len(self.shapes[name]) == 1:
            return torch.ones(self.shapes[name], device=device)
        seed = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
        value = torch.empty(self.shapes[name], device=device, dtype=torch.bfloat16)
        return value.normal_(0, 0.02, generator=seed)


def make_files(folder: Path) -> None:
    """Write the weights of a folder's config, in parts of 2 GB, from the GPU."""
    import torch
    from safetensors.torch import save_file

    from medcot.model import Location

    weights = RandomWeights(Location(str(folder)))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    part: dict[str, Any] = {}
    index: dict[str, str] = {}
    size, number = 0, 0
    for name in weights.names(""):
        part[name] = weights.read(name, device).to("cpu", torch.bfloat16)
        size += part[name].numel() * 2
        index[name] = f"model-{number}.safetensors"
        if size > 2e9:
            save_file(part, folder / index[name], metadata={"format": "pt"})
            part, size, number = {}, 0, number + 1
    if part:
        save_file(part, folder / f"model-{number}.safetensors", metadata={"format": "pt"})
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)


def work(arguments: argparse.Namespace) -> None:
    """In a process that a job started: `medcot`, with what it took of this GPU written down."""
    import torch

    from medcot.__main__ import main as medcot
    from medcot.engines import split, transformers
    from medcot.model import LoadedModel, Location

    rank = int(os.environ.get("RANK", "0"))
    cuda = torch.cuda.is_available() and not arguments.small
    facts: dict[str, Any] = {"rank": rank, "loaded_gib": 0.0, "peak_gib": 0.0, "error": ""}
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        total = torch.cuda.get_device_properties().total_memory
        if arguments.cap:
            torch.cuda.set_per_process_memory_fraction(arguments.cap * 2**30 / total)
    if arguments.made:
        split.Checkpoint = RandomWeights  # pyright: ignore[reportAttributeAccessIssue]
        transformers.load_base = split.load_base
    chosen = {"split": split.load_base, "transformers": transformers.load_base}
    began = time.monotonic()

    def load_by(name: str) -> Any:
        def load(config: Any, plan: Any, where: Location) -> LoadedModel:
            start = time.monotonic()
            loaded = chosen[name](config, plan, where)
            if cuda:
                facts["loaded_gib"] = torch.cuda.memory_allocated() / 2**30
            facts["load_s"] = round(time.monotonic() - start, 1)
            line = f"rank {rank}: loaded in {facts['load_s']} s, {facts['loaded_gib']:.1f} GiB"
            print(f"{line}, {start - began:.1f} s after the start", file=sys.stderr, flush=True)
            return loaded

        return load

    split.load_base, transformers.load_base = load_by("split"), load_by("transformers")
    try:
        medcot(arguments.rest)
    except SystemExit as ended:
        facts["error"] = f"exit {ended.code}"
        raise
    except BaseException as error:
        facts["error"] = f"{type(error).__name__}: {error}"
        raise
    finally:
        if cuda:
            facts["peak_gib"] = torch.cuda.max_memory_reserved() / 2**30
            facts["peak_allocated_gib"] = torch.cuda.max_memory_allocated() / 2**30
        path = arguments.folder / f"{arguments.worker}.rank-{rank}.json"
        path.write_text(json.dumps(facts))
        print(f"rank {rank}: {json.dumps(facts)}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--data", default="sample", help="rows to train on")
    parser.add_argument("--tokenizer", type=Path, help="a folder with a tokenizer")
    parser.add_argument("--seconds", type=float, default=175.0, help="start nothing after these")
    parser.add_argument("--small", action="store_true", help="tiny models on CPUs")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--cap", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--made", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    if arguments.worker:
        return work(arguments)
    bench = Bench(arguments)
    (bench.folder / "runs").mkdir(parents=True, exist_ok=True)
    large, little = (TINY, TINY) if arguments.small else (LLAMA_70B, LLAMA_8B)
    write_config(bench.folder / "large", large, arguments.tokenizer)
    write_config(bench.folder / "little", little, arguments.tokenizer)
    both = Job("70B on two, 40 GiB each", "large", (0, 1), 4, CAP_GIB, made=True, command="run")
    capped = Job("70B on one, 40 GiB", "large", (0,), 4, CAP_GIB, made=True)
    alone = Job("70B on one, 80 GB", "large", (1,), 4, made=True)
    files_both = Job("8B files on two", "little", (0, 1), 6, command="run")
    files_alone = Job("8B files on one", "little", (0,), 6, command="run")
    code = f"import fsdp, pathlib; fsdp.make_files(pathlib.Path({str(bench.folder / 'little')!r}))"
    writer = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path, str(ROOT)])},
    )
    bench.run([both])
    bench.say(f"files of the 8B are written: exit {writer.wait()}")
    # While one GPU trains the large model, the other one finds out that 40 GiB are too little.
    bench.run_beside([alone], [capped, files_alone])
    bench.run([files_both])
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"\n{name}, {date.today()}, torch {torch.__version__}")
    table(bench, [both, capped, alone, files_both, files_alone])
    compare(bench, alone, both)
    compare(bench, files_alone, files_both)
    if bench.left:
        print("\nNot run, no time was left:", ", ".join(bench.left))
    return None


if __name__ == "__main__":
    main()
