"""Where a training step's time goes: on the GPU by kind of kernel, and between kernels.

Used by ``bench/training.py``; needs a CUDA GPU.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

PROFILED_STEPS = 2


class StepProfile:
    """Watches the GPU during some optimizer steps of a training.

    Call :meth:`step_ended` after every step. The third to last steps are watched: those before
    compile kernels.
    """

    def __init__(self) -> None:
        from torch.profiler import ProfilerActivity, profile

        self.steps = 0
        self.seen = profile(activities=[ProfilerActivity.CUDA])

    def step_ended(self, *_: Any) -> None:
        import torch

        self.steps += 1
        if self.steps == 3:
            torch.cuda.synchronize()
            self.seen.start()
            self.started = time.perf_counter()
        elif self.steps == 3 + PROFILED_STEPS:
            torch.cuda.synchronize()
            self.seconds = time.perf_counter() - self.started
            self.seen.stop()

    def describe(self, say: Callable[..., None]) -> dict[str, Any]:
        """Milliseconds per step: in all, by kind, busy, and the largest pauses."""
        spans = sorted(
            (event.time_range.start, event.time_range.end, event.name)
            for event in self.seen.events()
            if event.device_type.name == "CUDA"
        )
        kinds: dict[str, float] = defaultdict(float)
        kernels: dict[str, list[float]] = defaultdict(list)
        for start, end, name in spans:
            kinds[kind_of(name)] += (end - start) / 1000 / PROFILED_STEPS
            kernels[name].append((end - start) / 1000 / PROFILED_STEPS)
        for name, times in sorted(kernels.items(), key=lambda item: -sum(item[1]))[:28]:
            say(f"{sum(times):8.2f} ms {len(times) // PROFILED_STEPS:5d}", name[:100])
        pauses = sorted(_pauses(spans), reverse=True)
        for pause, before, after in pauses[:8]:
            say(f"{pause / 1000:8.2f} ms without a kernel between", before[:50], "and", after[:50])
        return {
            "step_ms": self.seconds * 1000 / PROFILED_STEPS,
            "idle_ms": sum(pause for pause, _, _ in pauses) / 1000 / PROFILED_STEPS,
            "launches": len(spans) / PROFILED_STEPS,
            "kinds_ms": dict(kinds),
        }


def _pauses(spans: list[tuple[float, float, str]]) -> list[tuple[float, str, str]]:
    found: list[tuple[float, str, str]] = []
    if not spans:
        return found
    _, latest, last = spans[0]
    for start, end, name in spans[1:]:
        if start > latest:
            found.append((start - latest, last, name))
        if end > latest:
            latest, last = end, name
    return found


def kind_of(kernel: str) -> str:
    """The kind of work that a kernel's name tells of."""
    name = kernel.lower()
    for kind, signs in KINDS.items():
        if any(sign in name for sign in signs):
            return kind
    return "the rest"


KINDS = {
    "attention": ("flash", "fmha"),
    "rounding to 8 bits": ("_quantize_rows",),
    "matrix products": ("nvjet", "gemm", "cutlass", "splitk", "xmma"),
    "unpacking 4 bits": ("dequantize",),
    "optimizer": ("koptimizer", "kpreconditionoptimizer", "adam"),
    "exchange": ("nccl",),
    "norms, gates, rotations, loss": (
        "_rms_norm", "_swiglu", "_rope", "_cross_entropy_kernel",
    ),
}  # fmt: skip


def ceiling_tflops() -> float:
    """What a large bf16 product reaches on this GPU."""
    import torch

    a, b = torch.randn(2, 8192, 8192, device="cuda", dtype=torch.bfloat16)
    times: list[float] = []
    for _ in range(13):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        a @ b
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return 2 * 8192**3 / sorted(times)[6] / 1e9


def print_python_time(model: Any, batch: dict[str, Any]) -> float:
    """Milliseconds of a pass over one short row, which the GPU is soon done with, and where the
    processor spends them. ``model`` is within its training pass."""
    import cProfile
    import pstats

    import torch

    for _ in range(2):
        model(**batch).backward()
    torch.cuda.synchronize()
    started = time.perf_counter()
    model(**batch).backward()
    torch.cuda.synchronize()
    took = (time.perf_counter() - started) * 1000
    with cProfile.Profile() as seen:
        model(**batch).backward()
    model.zero_grad()
    pstats.Stats(seen).sort_stats("tottime").print_stats(22)
    return took
