"""Ways of answering prompts: tokens per second, time to prepare, and whether answers are the same.

    python bench/generation.py                                    # bundled model, this machine
    python bench/generation.py --model 8b --tokenizer DIR         # CUDA: random weights of 8B shape

Ways: one prompt at a time, as the tutorial does it; padded batches; this project's slots, as they
are and in parts; transformers' static cache, as it is and compiled; its continuous batching.
Answers are compared with those of one prompt at a time. Where the first token that differs was a
numerical tie (the two tokens' logits, in a float32 pass over the same prefix, are nearer than twice
the largest error of the model's own precision there) that is counted as such.

Then answers of unequal lengths (a seeded draw of 100 to 900 tokens, each ended before by an end
token where the weights are real), and the same with an adapter. Every result is printed as soon as
it is known; a way that fails is named; what ``--seconds`` leaves no time for is not run.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch
from engines import LLAMA_8B

SMOLLM2_135M = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152,
    "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192,
    "rope_theta": 100000.0, "tie_word_embeddings": True,
}  # fmt: skip
SHAPES = {"8b": LLAMA_8B, "135m": SMOLLM2_135M}
Answers = list[list[int]]
COMPARING_S = 25
"""What the comparison at the end may need."""


class Bench:
    """One model, its prompts, and what was found so far."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.deadline = time.monotonic() + arguments.seconds - COMPARING_S
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model, self.tokenizer, self.end = load(arguments, self.device)
        self.prompts = read_prompts(arguments, self.tokenizer)
        self.rows = arguments.rows or (64 if self.device.type == "cuda" else 8)
        self.limits = [arguments.tokens] * len(self.prompts)
        self.reference: Answers = []
        self.answers: dict[str, Answers] = {}
        self.results: list[dict[str, Any]] = []
        self.out = arguments.out

    def measure(self, name: str, way: Callable[[], Answers], times: int = 2) -> Answers | None:
        """Time ``way``, the first time apart; prints and keeps the result."""
        seconds: list[float] = []
        answers: Answers | None = None
        busy = 0.0
        try:
            for _ in range(times):
                if time.monotonic() > self.deadline - 3:
                    break
                with limited(self.deadline - time.monotonic()):
                    clear()
                    started, busy = time.perf_counter(), time.process_time()
                    answers = way()
                    synchronize()
                    seconds.append(time.perf_counter() - started)
                    busy = time.process_time() - busy
        except Exception as error:  # noqa: BLE001 - the other ways are worth having
            print(f"| {name} | failed: {type(error).__name__}: {str(error)[:300]!r} |", flush=True)
        if not seconds or answers is None:
            print(f"| {name} | not run to its end |", flush=True)
            return None
        tokens = sum(map(len, answers))
        peak = torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else None
        result = {
            "name": name, "prompts": len(answers), "tokens": tokens, "seconds": seconds,
            "processor_s": busy, "speed": tokens / seconds[-1], "peak_gib": peak,
        }  # fmt: skip
        self.results.append(result)
        first = f"{seconds[0]:.1f}" if len(seconds) > 1 else ""
        size = f"{peak:.1f}" if peak else ""
        print(
            f"| {name} | {len(answers)} | {tokens:,} | {first} | {seconds[-1]:.1f} | {busy:.1f} |"
            f" {tokens / seconds[-1]:,.1f} | {size} |",
            flush=True,
        )
        self.keep()
        return answers

    def keep(self) -> None:
        text = json.dumps(self.results)
        for folder in filter(None, (self.out, os.environ.get("OUT"))):
            Path(folder, "generation.json").write_text(text)


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """End what takes longer by a TimeoutError."""

    def stop(*_: Any) -> None:
        raise TimeoutError("no time left")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(1.0, seconds))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def clear() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def load(arguments: argparse.Namespace, device: torch.device) -> tuple[Any, Any, int]:
    """(model, tokenizer, end token): -1, which nothing is, where the weights are random."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if arguments.model not in SHAPES:
        from medcot.engines.loading import locate

        where = locate(arguments.model)
        tokenizer = AutoTokenizer.from_pretrained(where.source, **where.options)
        model = AutoModelForCausalLM.from_pretrained(where.source, **where.options, dtype=dtype)
        model.generation_config = type(model.generation_config)(
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
        )
        return model.to(device).eval(), tokenizer, tokenizer.eos_token_id
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with device:
        config = LlamaConfig(**SHAPES[arguments.model], eos_token_id=None, bos_token_id=None)
        model = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    model.generation_config.pad_token_id = 0
    return model, AutoTokenizer.from_pretrained(arguments.tokenizer), -1


def read_prompts(arguments: argparse.Namespace, tokenizer: Any) -> list[list[int]]:
    from medcot.config.presets import make_config
    from medcot.data.dataset import load_dataset
    from medcot.data.prompts import render
    from medcot.data.tokenization import chat_template, encode_text

    cases = load_dataset(make_config("demo", {"dataset": arguments.data})).cases
    chat = chat_template(tokenizer)
    style = "chat" if chat else "tutorial"
    texts = [render(case, style, chat).text for case in cases[: arguments.prompts]]
    return [encode_text(tokenizer, text) for text in texts]


def up_to_end(ids: list[int], end: int, limit: int) -> list[int]:
    ids = ids[:limit]
    return ids[: ids.index(end) + 1] if end in ids else ids


def in_batches(
    bench: Bench, prompts: Sequence[list[int]], limits: Sequence[int], rows: int, **options: Any
) -> Answers:
    """By ``generate`` in batches padded on the left, prompts of like length together."""
    answers: Answers = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        width = max(len(prompts[index]) for index in chosen)
        gaps = [width - len(prompts[index]) for index in chosen]
        ids = [[0] * gap + prompts[index] for gap, index in zip(gaps, chosen, strict=True)]
        mask = [[0] * gap + [1] * (width - gap) for gap in gaps]
        with torch.inference_mode():
            output = bench.model.generate(
                input_ids=torch.tensor(ids, device=bench.device),
                attention_mask=torch.tensor(mask, device=bench.device),
                max_new_tokens=max(limits[index] for index in chosen), do_sample=False, **options,
            )  # fmt: skip
        for index, row in zip(chosen, output[:, width:].tolist(), strict=True):
            answers[index] = up_to_end(row, bench.end, limits[index])
    return answers


def in_slots(
    bench: Bench, prompts: Sequence[list[int]], limits: Sequence[int], rows: int, **changes: Any
) -> Answers:
    """As medcot answers, or with ``graphs`` or ``by_length`` switched off."""
    from medcot.inference import continuous_batching

    by_length = continuous_batching.reads_by_length
    if not changes.pop("by_length", True):
        continuous_batching.reads_by_length = lambda *_: False
    try:
        with torch.inference_mode():
            count = min(rows, len(prompts))
            decoder = continuous_batching.Decoder(
                bench.model, prompts, limits, {bench.end}, count, **changes
            )
            answers = decoder.run()
    finally:
        continuous_batching.reads_by_length = by_length
    if bench.device.type == "cuda":
        recorded = sum(graph is not None for graph in decoder.recorded.values())
        print(f"{recorded} graphs, by length: {decoder.slots.by_length}", flush=True)
    return answers


def continuously(bench: Bench, limits: Sequence[int], *, graphs: bool | None) -> Answers:
    """By transformers' own continuous batching over a paged cache, each prompt with its limit."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    usual = bench.model.config._attn_implementation
    longest = max(map(len, bench.prompts)) + max(limits)
    config = GenerationConfig(
        max_new_tokens=max(limits), do_sample=False, eos_token_id=bench.end, pad_token_id=0
    )
    batching = ContinuousBatchingConfig(
        use_cuda_graph=graphs,
        num_blocks=len(bench.prompts) * -(-longest // 256) + 8,
        max_batch_tokens=4096 if bench.device.type == "cuda" else 512,
    )
    found: dict[str, list[int]] = {}
    try:
        with bench.model.continuous_batching_context_manager(
            generation_config=config, continuous_batching_config=batching, block=True, timeout=5
        ) as manager:
            names = [
                manager.add_request(ids, max_new_tokens=limit)
                for ids, limit in zip(bench.prompts, limits, strict=True)
            ]
            while len(found) < len(names):
                output = manager.get_result(timeout=1)
                if output is not None and output.is_finished():
                    found[output.request_id] = list(output.generated_tokens)
                elif output is None and not manager.is_running():
                    raise RuntimeError(f"{len(found)} of {len(names)} prompts were answered")
    finally:
        bench.model.config._attn_implementation = usual
    return [
        up_to_end(found[name], bench.end, limit) for name, limit in zip(names, limits, strict=True)
    ]


def equal_lengths(bench: Bench, count: int) -> None:
    """All ways, the same limit for every prompt; answers are kept to be compared."""
    prompts, limits, rows = bench.prompts, bench.limits, bench.rows
    cuda = bench.device.type == "cuda"
    ways: dict[str, Callable[[], Answers]] = {
        "slots, as medcot answers": lambda: in_slots(bench, prompts, limits, rows),
        "padded batches, as medcot answered": lambda: in_batches(bench, prompts, limits, rows),
    }
    if cuda:
        ways |= {
            "slots without graphs": lambda: in_slots(bench, prompts, limits, rows, graphs=False),
            "slots, masked attention": lambda: in_slots(
                bench, prompts, limits, rows, by_length=False
            ),
        }
    ways["static cache"] = lambda: in_batches(
        bench, prompts, limits, rows, cache_implementation="static", disable_compile=True
    )
    few = prompts[:count]
    bench.reference = (
        bench.measure(
            "one prompt at a time", lambda: in_batches(bench, few, limits, 1), times=1
        ) or []
    )  # fmt: skip
    measure_all(bench, ways)


def measure_all(bench: Bench, ways: dict[str, Callable[[], Answers]]) -> None:
    for name, way in ways.items():
        answers = bench.measure(name, way, times=2 if bench.device.type == "cuda" else 1)
        if answers:
            bench.answers[name] = answers


def by_continuous_batching(bench: Bench) -> dict[str, Callable[[], Answers]]:
    ways = {
        "continuous batching (transformers)": lambda: continuously(bench, bench.limits, graphs=None)
    }
    if bench.device.type == "cuda":
        ways["continuous batching, CUDA graphs"] = lambda: continuously(
            bench, bench.limits, graphs=True
        )
    return ways


def against_continuous_batching(bench: Bench, count: int) -> None:
    """Medcot's slots against transformers' continuous batching, and little else."""
    few = bench.prompts[:count]
    bench.reference = (
        bench.measure(
            "one prompt at a time", lambda: in_batches(bench, few, bench.limits, 1), times=1
        ) or []
    )  # fmt: skip
    slots = {
        "slots, as medcot answers": lambda: in_slots(bench, bench.prompts, bench.limits, bench.rows)
    }
    measure_all(bench, slots | by_continuous_batching(bench))
    unequal_lengths(bench)
    graphs = True if bench.device.type == "cuda" else None
    bench.measure(
        "100 to 900 tokens, continuous batching",
        lambda: continuously(bench, unequal_limits(bench), graphs=graphs),
        times=1,
    )


def of_transformers(bench: Bench) -> None:
    """What transformers offers beside its plain way; last, as it may take long to start."""
    ways = by_continuous_batching(bench)
    if bench.device.type == "cuda":
        ways["static cache, compiled"] = lambda: in_batches(
            bench, bench.prompts, bench.limits, bench.rows, cache_implementation="static"
        )
    measure_all(bench, ways)


def unequal_limits(bench: Bench) -> list[int]:
    draw = random.Random(0)
    return [draw.randint(100, 900) for _ in bench.prompts]


def unequal_lengths(bench: Bench) -> None:
    """Where slots become free at different times."""
    limits = unequal_limits(bench)
    for count in (bench.rows, max(1, bench.rows // 4)):
        bench.measure(
            f"100 to 900 tokens, {count} slots",
            lambda count=count: in_slots(bench, bench.prompts, limits, count),
            times=1,
        )


def unequal_batches(bench: Bench) -> None:
    """Where all rows of a batch wait for the longest."""
    limits = unequal_limits(bench)
    bench.measure(
        f"100 to 900 tokens, batches of {bench.rows}",
        lambda: in_batches(bench, bench.prompts, limits, bench.rows),
        times=1,
    )


def profile(bench: Bench) -> None:
    """Where the GPU's time goes while slots answer, by kernel."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    steps = 33
    with (
        limited(bench.deadline - time.monotonic()),
        record(activities=[ProfilerActivity.CUDA]) as seen,
    ):
        started = time.perf_counter()
        in_slots(bench, bench.prompts, [steps] * len(bench.prompts), bench.rows)
        synchronize()
        seconds = time.perf_counter() - started
    events = sorted(seen.key_averages(), key=lambda one: -one.self_device_time_total)
    busy = sum(event.self_device_time_total for event in events) / 1e3
    print(f"{steps} steps and reading the prompts: {seconds * 1e3:.0f} ms, GPU busy {busy:.0f} ms")
    for event in events[:22]:
        print(f"{event.self_device_time_total / 1e3:9.2f} ms {event.count:6d} {event.key[:100]}")
    print(flush=True)


def with_adapter(bench: Bench) -> None:
    """A fresh adapter changes no answer, but every projection has two more products."""
    from peft import LoraConfig, get_peft_model

    from medcot.config.schema import TARGET_MODULES

    base = bench.model
    bench.model = get_peft_model(base, LoraConfig(r=16, target_modules=list(TARGET_MODULES))).eval()
    for name, way in {
        "slots, with an adapter": in_slots, "padded batches, with an adapter": in_batches,
    }.items():  # fmt: skip
        bench.measure(
            name, lambda way=way: way(bench, bench.prompts, bench.limits, bench.rows), times=1
        )
    bench.model = bench.model.unload()


def compare(bench: Bench) -> None:
    """How many answers equal those of one prompt at a time, and what the first other token was."""
    forks: dict[tuple[int, int], list[tuple[str, int, int]]] = {}
    for name, answers in bench.answers.items():
        for index, expected in enumerate(bench.reference):
            pairs = enumerate(zip(expected, answers[index], strict=False))
            fork = next((place for place, (a, b) in pairs if a != b), None)
            if fork is not None:
                pair = (name, expected[fork], answers[index][fork])
                forks.setdefault((index, fork), []).append(pair)
            elif len(expected) != len(answers[index]):
                print(f"{name}: answer {index} has another length and no other token")
    own = {key: logits_at(bench, *key) for key in forks}
    bench.model.float()
    exact = {key: logits_at(bench, *key) for key in forks}
    errors = [(own[key] - exact[key]).abs().max().item() for key in forks]
    # Without a lower precision the two passes are one: what is left is the order of sums.
    near = max(2 * max(errors, default=0.0), 1e-3)
    print(f"\nNearer than {near:.4f} counts as a tie; logits spread (standard deviation)"
          f" {torch.stack([*exact.values()]).std().item() if exact else 0:.3f}.\n")  # fmt: skip
    print("| way | answers compared | same | first other token a tie | not a tie | largest gap |")
    print("| --- | --: | --: | --: | --: | --: |")
    for name in bench.answers:
        gaps = [
            abs(exact[key][a] - exact[key][b]).item()
            for key, pairs in forks.items()
            for way, a, b in pairs
            if way == name
        ]
        ties, count = sum(gap < near for gap in gaps), len(bench.reference)
        print(f"| {name} | {count} | {count - len(gaps)} | {ties} | {len(gaps) - ties} |"
              f" {max(gaps, default=0):.4f} |", flush=True)  # fmt: skip
        bench.results.append({"compared": name, "of": count, "gaps": gaps, "near": near})
    bench.keep()


def logits_at(bench: Bench, index: int, fork: int) -> torch.Tensor:
    """The logits, in float32, of the token after ``fork`` tokens of a reference answer."""
    ids = bench.prompts[index] + bench.reference[index][:fork]
    with torch.inference_mode():
        passed = bench.model(
            input_ids=torch.tensor([ids], device=bench.device), use_cache=False, logits_to_keep=1
        )
    return passed.logits[0, -1].float().cpu()


def main() -> None:
    """Measure, print, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m", help="a model; 8b, 135m: random weights")
    parser.add_argument("--tokenizer", help="its folder, for random weights")
    parser.add_argument("--data", default="sample", help="a data set with the prompts")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64, help="new tokens at most")
    parser.add_argument("--reference", type=int, default=16, help="prompts asked one at a time")
    parser.add_argument("--rows", type=int, help="answered at once (64 on CUDA, else 8)")
    parser.add_argument("--seconds", type=float, default=3600, help="stop in time for this")
    parser.add_argument(
        "--only-continuous", action="store_true", help="slots and transformers' continuous batching"
    )
    parser.add_argument("--only-equal", action="store_true", help="no unequal lengths, no adapter")
    parser.add_argument("--out", type=Path, help="a folder for generation.json")
    arguments = parser.parse_args()
    if arguments.model in SHAPES and not arguments.tokenizer:
        parser.error("random weights need --tokenizer DIR")
    from medcot.engines.compat import known_messages_silenced

    with known_messages_silenced():
        bench = Bench(arguments)
        print_heading(bench, arguments)
        for stage in stages_of(bench, arguments):
            guarded(bench, stage)
        if bench.reference:
            compare(bench)


def stages_of(bench: Bench, arguments: argparse.Namespace) -> list[Callable[[Bench], None]]:
    if arguments.only_continuous:
        return [lambda bench: against_continuous_batching(bench, arguments.reference)]
    stages = [lambda bench: equal_lengths(bench, arguments.reference)]
    if bench.device.type == "cuda":
        stages.append(profile)
    if arguments.only_equal:
        return [*stages, of_transformers]
    return [*stages, with_adapter, unequal_lengths, of_transformers, unequal_batches]


def guarded(bench: Bench, stage: Callable[[Bench], None]) -> None:
    try:
        stage(bench)
    except Exception as error:  # noqa: BLE001 - the rest is worth having
        print(f"{stage.__name__}: {type(error).__name__}: {str(error)[:300]}", flush=True)


def print_heading(bench: Bench, arguments: argparse.Namespace) -> None:
    import transformers

    device = torch.cuda.get_device_name() if bench.device.type == "cuda" else platform.machine()
    lengths = list(map(len, bench.prompts))
    print(
        f"{device}, {os.cpu_count()} cores, {datetime.now(UTC):%Y-%m-%d},"
        f" torch {torch.__version__}, transformers {transformers.__version__};"
        f" {arguments.model} in {bench.model.dtype},"
        f" {len(lengths)} prompts of {min(lengths)} to {max(lengths)} tokens,"
        f" {bench.rows} at once, at most {arguments.tokens} new tokens\n"
    )
    print("| way | prompts | tokens | first time, s | s | processor, s | tokens/s | peak GiB |")
    print("| --- | --: | --: | --: | --: | --: | --: | --: |", flush=True)


if __name__ == "__main__":
    main()
