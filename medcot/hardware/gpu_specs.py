"""Lists GPU models: memory, compute capability and matrix throughput."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

OLDEST_CAPABILITY = (7, 0)
"""Older GPUs (P100 and before) are refused: current libraries have no kernels for them."""

REACHED_GB_S = 1000.0
"""Rough figure for weights read on an H100 in generation, a third of its data sheet's."""


@dataclass(frozen=True)
class Gpu:
    """One GPU that torch calls CUDA: NVIDIA's, or with ``rocm`` AMD's by a ROCm build of torch.

    ``memory_gib`` is what a process can use. ``tflops_16bit`` is the throughput of a large 16-bit
    matrix product: measured, or the data sheet's dense figure times the share that was measured
    on an H100. ``bandwidth_gb_s`` is how fast weights are read while a token is generated, in
    10**9 bytes per second: the data sheet's figure, but at most what an H100 was seen to reach.
    """

    name: str
    memory_gib: float
    compute_capability: tuple[int, int]
    tflops_16bit: float
    bandwidth_gb_s: float = REACHED_GB_S
    rocm: bool = False


@dataclass(frozen=True)
class GpuModel:
    """A row of the table; ``pattern`` matches the driver's name for the model.

    ``datasheet_gb_s`` is left out where it is more than any GPU was seen to reach.
    """

    pattern: str
    name: str
    memory_gib: float
    compute_capability: tuple[int, int]
    datasheet_tflops: float
    measured_tflops: float | None = None
    datasheet_gb_s: float = REACHED_GB_S

    @property
    def tflops_16bit(self) -> float:
        """Return the measured throughput, or an estimate from the data sheet."""
        return self.measured_tflops or round(self.datasheet_tflops * _SUSTAINED_SHARE, 1)

    def as_gpu(self) -> Gpu:
        """Return a GPU of this model with all its memory free."""
        return self.with_memory(self.memory_gib, self.compute_capability)

    def with_memory(self, free_gib: float, compute_capability: tuple[int, int]) -> Gpu:
        """Return a GPU of this model as the driver describes it."""
        return Gpu(self.name, free_gib, compute_capability, self.tflops_16bit, self.datasheet_gb_s)


_SUSTAINED_SHARE = 780 / 989
"""Share of the data sheet's figure that an H100 reached; assumed for unmeasured GPUs."""

# Data sheets: dense 16-bit tensor throughput with 32-bit accumulation. Memory is the total that
# CUDA reports, which is less than the name says. The first match counts.
GPU_MODELS = {
    "H200": GpuModel(r"\bH200\b", "NVIDIA H200", 139.8, (9, 0), 989, 788),
    "H100": GpuModel(r"\bH100\b", "NVIDIA H100 80GB HBM3", 79.2, (9, 0), 989, 780),
    "A100-40": GpuModel(r"\bA100\b.*40GB", "NVIDIA A100-SXM4-40GB", 39.4, (8, 0), 312),
    "A100": GpuModel(r"\bA100\b", "NVIDIA A100-SXM4-80GB", 79.3, (8, 0), 312),
    "A10G": GpuModel(r"\bA10G\b", "NVIDIA A10G", 22.1, (8, 6), 70, None, 600),
    "L40S": GpuModel(r"\bL40S\b", "NVIDIA L40S", 44.4, (8, 9), 362, None, 864),
    "L4": GpuModel(r"\bL4\b", "NVIDIA L4", 22.1, (8, 9), 121, None, 300),
    "RTX 4090": GpuModel(r"\bRTX 4090\b", "NVIDIA GeForce RTX 4090", 23.5, (8, 9), 165),
    "T4": GpuModel(r"\bT4\b", "Tesla T4", 14.6, (7, 5), 65, None, 320),
}


def recognise_gpu(name: str, free_gib: float, compute_capability: tuple[int, int]) -> Gpu:
    """Return the GPU of the driver's ``name``, with the table's throughput or its generation's."""
    known = next((model for model in GPU_MODELS.values() if re.search(model.pattern, name)), None)
    if known is not None:
        return replace(known.with_memory(free_gib, compute_capability), name=name)
    # Nobody measured it: the generation's usual figure keeps the time estimate's order right.
    usual = {7: 50.0, 8: 100.0, 9: 700.0}.get(compute_capability[0], 100.0)
    return Gpu(name, free_gib, compute_capability, usual)


def supports_bf16(gpu: Gpu) -> bool:
    """Return whether the GPU computes in bfloat16; torch also counts slow emulation."""
    return gpu.compute_capability >= (8, 0)


def supports_fp8(gpu: Gpu) -> bool:
    """Return whether the GPU multiplies 8-bit floats in NVIDIA's format."""
    return gpu.compute_capability >= (8, 9) and not gpu.rocm


def is_usable(gpu: Gpu) -> bool:
    """Return whether the GPU is new enough to train on."""
    return gpu.compute_capability >= OLDEST_CAPABILITY


def capability(gpu: Gpu) -> str:
    """Return the compute capability as text, such as ``7.5``."""
    return "{}.{}".format(*gpu.compute_capability)
