"""A model that fits no single GPU, split over two: memory, speed and losses against one GPU.

    python bench/fsdp.py --data cot.jsonl --tokenizer DIR --folder /tmp/fsdp

Needs two CUDA GPUs of 80 GB and bitsandbytes. Models of Llama's shape in NF4 with random weights,
made on the GPU as they are read, trained by `medcot train` in one process and in two, as torchrun
starts them:

- 70B on both GPUs with 40 GiB each, on one with 40 GiB, which the planner is to refuse, and on one
  with all of its memory;
- 8B on one GPU, and split over both.

Importing takes longer than training, so all processes start at once and wait for their turn. Prints
what is known as soon as it is, and a Markdown table at the end; runs that no time is left for are
named. `--small` trains models of a few thousand weights on CPUs, to try this file itself.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zlib
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from threading import Lock, Thread
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
NEEDS_S = 15.0
"""Without so much time left no job is begun."""
ROOT = Path(__file__).resolve().parent.parent
OPTIONS = {
    "preset": "tutorial",
    "engine": "transformers",
    "wandb": "off",
    "samples": 64,
    "micro_batch": 2,
    "checkpointing": "on",
    "max_length": 768,
    "warmup_steps": 1,
    "save_steps": 1000,
    "test_samples": 4,
}


SAID = ("train ", "score", "medcot:", "rank ", "Error", "GiB of")
"""Lines of a job that are printed have one of these."""


@dataclass
class Job:
    """One training: which model, by how many processes on which GPUs, within how much memory."""

    name: str
    model: str
    gpus: tuple[int, ...]
    steps: int
    batch: int = 4
    cap_gib: float = 0.0
    processes: list[subprocess.Popen[str]] = field(default_factory=list)


class Bench:
    """Starts jobs, prints what they say, and ends those that take too long."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.folder = arguments, arguments.folder
        self.started = time.monotonic()
        self.left: list[str] = []
        self._speaks = Lock()

    def say(self, *words: Any) -> None:
        with self._speaks:
            print(f"[{time.monotonic() - self.started:6.1f}]", *words, flush=True)

    def remaining(self) -> float:
        return self.arguments.seconds - (time.monotonic() - self.started)

    def start(self, jobs: list[Job]) -> None:
        """Start the processes of all: they import what they need, and wait."""
        for job in jobs:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = str(free.getsockname()[1])
            for rank in range(len(job.gpus)):
                process = self._start(job, rank, port)
                job.processes.append(process)
                Thread(target=self._echo, args=(job, rank, process), daemon=True).start()

    def run(self, *jobs: Job) -> None:
        """Let jobs begin, side by side, and wait for the first of them to end."""
        if self.remaining() < NEEDS_S:
            self.left += [job.name for job in jobs]
            return
        for job in jobs:
            self._turn(job).touch()
            self.say(f"{job.name}: begins")
        self.wait(jobs[0])

    def wait(self, job: Job) -> None:
        """Wait for a job that began."""
        if not self._turn(job).exists():
            return
        try:
            codes = [one.wait(timeout=max(1.0, self.remaining())) for one in job.processes]
            self.say(f"{job.name}: exit {codes}")
        except subprocess.TimeoutExpired:
            self.say(f"{job.name}: ended, out of time")
            self.end([job])

    def end(self, jobs: list[Job]) -> None:
        """End what still runs or waits."""
        for process in (process for job in jobs for process in job.processes):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _turn(self, job: Job) -> Path:
        return self.folder / f"{job.name}.go"

    def _start(self, job: Job, rank: int, port: str) -> subprocess.Popen[str]:
        small = self.arguments.small
        options = OPTIONS | {"model": str(self.folder / job.model), "dataset": self.arguments.data}
        options |= {"steps": job.steps, "batch": job.batch}
        options |= {"out": str(self.folder / "runs" / job.name)}
        options |= {"preset": "demo"} if small else {"quantization": "4bit"}
        worker = [str(Path(__file__)), "--worker", job.name, "--folder", str(self.folder)]
        worker += ["--cap", str(job.cap_gib)] + ["--small"] * small
        words = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
        path = os.pathsep.join(filter(None, [str(ROOT), os.getenv("PYTHONPATH")]))
        settings = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, job.gpus)), "PYTHONPATH": path}
        settings |= {"PYTHONUNBUFFERED": "1"}
        if len(job.gpus) > 1:
            count = str(len(job.gpus))
            settings |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": count}
            settings |= {"LOCAL_WORLD_SIZE": count, "OMP_NUM_THREADS": "1"}
            settings |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            settings |= {"ACCELERATE_USE_FSDP": "true"}
        return subprocess.Popen(
            [sys.executable, *worker, "--", "train", *words],
            env=os.environ | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def _echo(self, job: Job, rank: int, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with (self.folder / f"{job.name}.{rank}.log").open("w") as log:
            for line in process.stdout:
                log.write(line)
                log.flush()
                if any(word in line for word in SAID):
                    self.say(f"{job.name}: {line.rstrip()[:300]}")

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
        # The facts of a job that was ended are those after loading.
        seen = max((event["memory_gib"] for event in events), default=0.0)
        peaks = [facts[0]["peak_gib"] or seen, *(one["peak_gib"] for one in facts[1:])]
        speeds = sorted(event["tokens_per_second"] for event in events[1:])
        speed = f"{speeds[len(speeds) // 2]:,.0f}" if speeds else "-"
        path = bench.folder / "runs" / job.name / "plan.json"
        planned = f"{json.loads(path.read_text())['peak_gib']:.1f}" if path.exists() else "-"
        losses = " ".join(f"{event['loss']:.4f}" for event in events)
        losses = losses or facts[0]["error"][:100]
        peak = ", ".join(f"{one:.1f}" for one in peaks)
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
    """A model's folder without weights. transformers would take seconds to import for this."""
    from tokenizers import Tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (tokenizer / name).exists():
            shutil.copy(tokenizer / name, folder / name)
    tokens = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    named = json.loads((tokenizer / "tokenizer_config.json").read_text())
    config = shape | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    config["dtype"] = "bfloat16"
    for name in ("bos", "eos", "pad"):
        token = named.get(f"{name}_token")
        token = token["content"] if isinstance(token, dict) else token
        config[f"{name}_token_id"] = token and tokens.token_to_id(token)
    (folder / "config.json").write_text(json.dumps(config))


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


class Worker:
    """In a process that a job started: `medcot`, with what it took of this GPU written down."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.began = arguments, time.monotonic()
        self.rank = int(os.environ.get("RANK", "0"))
        self.facts: dict[str, Any] = {"loaded_gib": 0.0, "peak_gib": 0.0, "error": ""}

    def say(self, words: str) -> None:
        passed = time.monotonic() - self.began
        line = f"rank {self.rank}: {words}, {passed:.1f} s after its start"
        print(line, file=sys.stderr, flush=True)

    def save(self) -> None:
        path = self.arguments.folder / f"{self.arguments.worker}.rank-{self.rank}.json"
        path.write_text(json.dumps(self.facts))

    def prepare(self) -> None:
        """Import what training needs, and wait for this job's turn."""
        import peft  # noqa: F401
        import torch
        import trl.trainer.sft_trainer  # noqa: F401

        import medcot.training.fit  # noqa: F401
        from medcot.engines.fsdp import safetensors_reader
        from medcot.engines.fsdp.engine import FsdpEngine
        from medcot.engines.hf import HfEngine
        from medcot.training.trainers import fsdp  # noqa: F401

        self.cuda = torch.cuda.is_available() and not self.arguments.small
        self.facts |= {"device": "CPU", "torch": torch.__version__}
        self.say("imported")
        while not (self.arguments.folder / f"{self.arguments.worker}.go").exists():
            time.sleep(0.1)
        self.began = time.monotonic()
        if self.cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            self.facts["device"] = torch.cuda.get_device_name()
            if self.arguments.cap:
                self._cap()
        safetensors_reader.Checkpoint = RandomWeights  # pyright: ignore[reportAttributeAccessIssue]
        HfEngine.load_base = FsdpEngine.load_base = self._loading(FsdpEngine.load_base)

    def _cap(self) -> None:
        """Let torch and the planner see no more of the GPU than was asked for."""
        import torch

        from medcot.hardware import machine

        cap, usual = self.arguments.cap, machine._detect_gpus
        total = torch.cuda.get_device_properties().total_memory
        torch.cuda.set_per_process_memory_fraction(cap * 2**30 / total)
        machine._detect_gpus = lambda: tuple(
            replace(gpu, memory_gib=min(gpu.memory_gib, cap)) for gpu in usual()
        )

    def _loading(self, usual: Any) -> Any:
        def load(*given: Any) -> Any:
            import torch

            start = time.monotonic()
            loaded = usual(*given)
            if self.cuda:
                self.facts["loaded_gib"] = torch.cuda.memory_allocated() / 2**30
            took = time.monotonic() - start
            self.say(f"loaded in {took:.1f} s, {self.facts['loaded_gib']:.1f} GiB")
            self.save()
            return loaded

        return load

    def work(self) -> None:
        import torch

        from medcot.cli.main import main as medcot

        self.prepare()
        try:
            medcot(self.arguments.rest)
        except SystemExit as ended:
            self.facts["error"] = f"exit {ended.code}" if ended.code else ""
            raise
        except BaseException as error:
            self.facts["error"] = f"{type(error).__name__}: {error}"
            raise
        finally:
            if self.cuda:
                self.facts["peak_gib"] = torch.cuda.max_memory_reserved() / 2**30
                self.facts["peak_allocated_gib"] = torch.cuda.max_memory_allocated() / 2**30
            self.save()
            self.say(json.dumps(self.facts))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--data", default="sample", help="rows to train on")
    parser.add_argument("--tokenizer", type=Path, help="a folder with a tokenizer")
    parser.add_argument("--seconds", type=float, default=110.0, help="end all after these")
    parser.add_argument("--small", action="store_true", help="tiny models on CPUs")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--cap", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    if arguments.worker:
        return Worker(arguments).work()
    bench = Bench(arguments)
    shutil.rmtree(bench.folder, ignore_errors=True)
    (bench.folder / "runs").mkdir(parents=True)
    large, little = (TINY, TINY) if arguments.small else (LLAMA_70B, LLAMA_8B)
    write_config(bench.folder / "large", large, arguments.tokenizer)
    write_config(bench.folder / "little", little, arguments.tokenizer)
    both = Job("70B-on-two-40GiB", "large", (0, 1), 4, cap_gib=CAP_GIB)
    capped = Job("70B-on-one-40GiB", "large", (0,), 4, cap_gib=CAP_GIB)
    little_one = Job("8B-on-one", "little", (1,), 6, batch=8, cap_gib=80 - CAP_GIB - 5)
    little_two = Job("8B-on-two", "little", (0, 1), 6, batch=8)
    alone = Job("70B-on-one-80GB", "large", (0,), 4)
    jobs = [both, capped, little_one, little_two, alone]
    bench.start(jobs)
    # The two that need little are done before the large one trains.
    bench.run(both, capped, little_one)
    bench.wait(capped)
    bench.wait(little_one)
    bench.run(little_two)
    bench.run(alone)
    bench.end(jobs)
    device, torch = ((bench.facts(both.name) or [{}])[0].get(key) for key in ("device", "torch"))
    print(f"\n{device}, {date.today()}, torch {torch}")
    table(bench, jobs)
    compare(bench, alone, both)
    compare(bench, little_one, little_two)
    if bench.left:
        print("\nNot run, no time was left:", ", ".join(bench.left))
    return None


if __name__ == "__main__":
    main()
