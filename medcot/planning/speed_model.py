"""How long things take, by a few coefficients per engine fitted to ``calibration.json``."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from medcot.config.schema import RunConfig
from medcot.hardware.machine import Machine, usable_gpus
from medcot.planning.memory_model import Setting, weight_bytes
from medcot.planning.model_specs import ModelShape

OPTIONS_TOKENS = 4 * 120
"""Tokens read to compare the options of one multiple-choice question: rough."""
CPU_BANDWIDTH, GPU_BANDWIDTH = 10e9, 1000e9
"""Bytes of weights read per second when a token is generated: rough."""


@dataclass(frozen=True)
class Pace:
    """How fast a setting goes on a device.

    ``layer_pass_s`` is the time to launch the kernels of one layer's forward pass, ``rate`` the
    operations per second that its arithmetic reaches. Where they overlap, the slower one counts.
    """

    layer_pass_s: float
    rate: float
    overlaps: bool


@cache
def calibration() -> dict[str, Any]:
    """The calibration table that comes with the package."""
    return json.loads((files("medcot.planning") / "calibration.json").read_text(encoding="utf-8"))


def pace_of(setting: Setting, machine: Machine) -> Pace:
    """The calibrated pace of ``setting`` on ``machine``."""
    table = calibration()
    if setting.device != "cuda":
        cpu = table["cpu"]
        # Memory bandwidth is shared: beyond 16 cores more of them hardly help.
        cores = min(machine.cpu_cores, 16)
        return Pace(cpu["layer_pass_s"], cpu["tflops_per_core"] * cores * 1e12, overlaps=False)
    gpu, engine = usable_gpus(machine)[0], table["engines"][setting.engine]
    shares = next((own for name, own in table["devices"].items() if name in gpu.name), engine)
    share = shares["recompute_share" if setting.checkpointing else "share"]
    # float32 products run on the 19-bit tensor cores at best, at half the 16-bit rate.
    rate = share * gpu.tflops_16bit * 1e12 / (2 if setting.precision == "fp32" else 1)
    overlaps = engine["recompute_overlaps"] or not setting.checkpointing
    return Pace(engine["layer_pass_s"], rate, overlaps)


def micro_step_s(
    setting: Setting,
    shape: ModelShape,
    machine: Machine,
    mean_tokens: float,
    longest: int,
    rank: int = 16,
) -> float:
    """Seconds for the forward and backward pass of one micro-batch."""
    pace = pace_of(setting, machine)
    if setting.engine == "fused":
        return _fused_micro_step_s(setting, shape, machine, mean_tokens, rank)
    # Weights are gathered on the way forward and on the way back, meanwhile.
    gathering = 2 * gather_s(setting, shape)
    # Forward 1, backward 2, and the forward once more where activations are recomputed.
    launch = (4 if setting.checkpointing else 3) * shape.layers * pace.layer_pass_s
    tokens = computed_tokens(setting, mean_tokens, longest)
    arithmetic = tokens * flops_per_token(shape, mean_tokens, setting.checkpointing) / pace.rate
    return max(gathering, max(launch, arithmetic) if pace.overlaps else launch + arithmetic)


FP8_GAIN = 1.54
"""How much faster frozen weights are multiplied in 8 bits, the rounding of what they meet included.
"""
FP8_LAUNCHES = 1.96
"""How much longer it takes to launch a layer's kernels then."""
DEQUANTIZING = 1670.0
"""Operations that could be done while one 4-bit weight is unpacked (an H100, roughly)."""
BESIDE = 28.0
"""Operations that could be done while a token passes one adapter parameter: thin products are slow.
"""
AGAIN = 0.73
"""What recomputing costs of what its operations would: it is products and little else."""


def _fused_micro_step_s(
    setting: Setting, shape: ModelShape, machine: Machine, mean_tokens: float, rank: int
) -> float:
    """The fused pass: products at one share of the GPU's rate, thin ones, weights to unpack."""
    tokens = setting.micro_batch * mean_tokens - (setting.micro_batch - 1) * setting.shared_tokens
    share = setting.recomputed_layers / shape.layers
    once, twice = (flops_per_token(shape, mean_tokens, again) for again in (False, True))
    # What a recomputed layer does not repeat: the feed-forward network's last product.
    down = 2 * shape.hidden * shape.intermediate * shape.layers
    work = tokens * (once + share * AGAIN * (twice - once - down) + BESIDE * shape.trainable(rank))
    if setting.quantization == "fp8":
        products = 4 * shape.linear_parameters * tokens * (1 + share * AGAIN / 2)
        work -= products * (1 - 1 / FP8_GAIN)
    if setting.quantization == "4bit":
        work += (2 + share) * shape.linear_parameters * DEQUANTIZING
    pace = pace_of(setting, machine)
    launch = (2 + share * 0.29) * shape.layers * pace.layer_pass_s
    if setting.quantization == "fp8":
        launch *= FP8_LAUNCHES
    # The processor launches while the GPU computes; where both take as long, each waits at times.
    return (launch**3 + (work / pace.rate) ** 3) ** (1 / 3)


GATHER_BANDWIDTH = 100e9
"""Bytes of split weights that reach a GPU per second from the others: rough, over NVLink."""


def gather_s(setting: Setting, shape: ModelShape) -> float:
    """Seconds to gather all split weights once."""
    if setting.shards == 1 or setting.device != "cuda":
        return 0.0
    whole = weight_bytes(shape, setting.quantization, 2.0)
    return whole * (1 - 1 / setting.shards) / GATHER_BANDWIDTH


def fixed_step_s(setting: Setting, processes: int) -> float:
    """Seconds of an optimizer step that do not grow with its tokens: sharing gradients."""
    if processes == 1 or setting.device != "cuda":
        return 0.0
    return calibration()["exchange_s"]


def flops_per_token(shape: ModelShape, length: float, checkpointing: bool) -> float:
    """Operations per token of a LoRA step: frozen weights need no gradient of their own.

    Two for each weight forward and two backward; attention over ``length`` tokens, causal.
    """
    attention = 2 * shape.heads * shape.head_dim * length * shape.layers
    blocks = 2 * shape.linear_parameters
    head = 2 * shape.head_parameters
    recomputed = blocks + attention if checkpointing else 0
    return 2 * blocks + 2 * head + 3.5 * attention + recomputed


def computed_tokens(setting: Setting, mean_tokens: float, longest: int) -> float:
    """Tokens that a micro-batch really computes on average: padding counts, packing has none."""
    rows = setting.micro_batch
    if setting.packing or rows == 1:
        return rows * mean_tokens
    # The expected maximum of n normal draws, in standard deviations, within 3 % up to n = 64.
    deviations = 0.56 * math.log2(rows) ** 0.85
    spread = max(0.0, longest - mean_tokens) / 3
    return rows * min(float(longest), mean_tokens + deviations * spread)


def is_measured(device: str, engine: str, machine: Machine) -> bool:
    """Whether the times rest on measured runs of this engine on this kind of device."""
    if device != "cuda":
        return device == "cpu"
    table = calibration()
    known = (table["device"], *(table["devices"] if engine != "fused" else ()))
    return any(name in usable_gpus(machine)[0].name for name in known)


def load_s(setting: Setting, shape: ModelShape) -> float:
    """Seconds for imports and reading the weights from a disk at 1 GB/s."""
    imports = {"unsloth": 40.0}.get(setting.engine, 12.0)
    return imports + weight_bytes(shape, setting.quantization, 2.0) / 1e9


def evaluate_s(
    config: RunConfig, setting: Setting, shape: ModelShape, machine: Machine, mean_tokens: float
) -> float:
    """Seconds for scoring and answering, before and after training together. Rough."""
    pace = pace_of(setting, machine)
    choices = sum(24 if name == "sample" else 1000 for name in config.mcq)
    if config.mcq_samples:
        choices = min(choices, config.mcq_samples * len(config.mcq))
    tokens = config.test_samples * mean_tokens + choices * OPTIONS_TOKENS
    score = tokens * 2 * shape.computed_parameters / pace.rate
    on_cpu = setting.device != "cuda"
    rounds = math.ceil((config.generate_samples + 1) / (8 if on_cpu else 64))
    read = weight_bytes(shape, setting.quantization, 4.0 if on_cpu else 2.0)
    one_token = shape.layers * pace.layer_pass_s / 2
    one_token += read / (CPU_BANDWIDTH if on_cpu else GPU_BANDWIDTH) + gather_s(setting, shape)
    return 2 * (score + rounds * config.max_new_tokens * one_token)
