"""Predicts the seconds of a step and of a run: the throughput model."""

from __future__ import annotations

import math
from dataclasses import dataclass

from medcot.config.schema import EngineName, RunConfig
from medcot.hardware.machine import Machine, usable_gpus
from medcot.planning.calibration import load_calibration
from medcot.planning.engine_traits import TRAITS
from medcot.planning.memory_model import StepConfig, weight_bytes
from medcot.planning.model_specs import ModelSpec

OPTIONS_TOKENS = 4 * 120
"""Tokens scored to compare the options of one multiple-choice question: a rough figure."""
ORDER_COST = 0.4
"""Time to read a question in one more order of its options, relative to the first: 26 questions in
four orders took 41 CPU seconds, in one 19 (``bench/chance.py sample``)."""
ALL_ORDERS = 4
"""Orders of a question's options, where all are asked: most have four."""
BUNDLED_QUESTIONS = 26
BUNDLED_ABILITIES = {"en": 72, "zh": 48}
"""General items, of which no more can be asked."""
CPU_BANDWIDTH = 2.6e9
"""Bytes of weights that a CPU reads per second while a token is generated. Fitted on two cores to
answers 8, 13 and 26 at once: 0.28, 0.34 and 0.46 s for a token of each (SmolLM2-135M)."""
LOSSES_ALONE = 0.35
"""Part of a scoring's time that remains without generated answers: 17 of 49 s of the demo on two
cores; more or fewer answers change it."""

WORTH_A_PROCESS_S = 30.0
"""Shortest training that is worth a process of its own on a CPU: one takes some ten seconds to
import the libraries and load the model."""
SHARED_CORES = 1.35
"""Speed of several trainings with a core each, relative to one that uses all: 163 against 119
tokens/s of SmolLM2-135M on two cores."""
STARTER_GIB = 1.0
"""Memory of the process that starts the trainings."""
PEAK_MARGIN = 1.15
"""Memory of a process relative to its planned peak: the demo reached 1.88 of 1.76 GiB."""


@dataclass(frozen=True)
class Throughput:
    """The calibrated speed of a step on a device.

    ``layer_pass_s`` is the time to launch the kernels of one layer's forward pass, ``rate`` the
    FLOP/s that its arithmetic reaches. If they overlap, only the slower one counts.
    """

    layer_pass_s: float
    rate: float
    overlaps: bool


def throughput_of(step: StepConfig, machine: Machine) -> Throughput:
    """Look up the calibrated throughput of ``step`` on ``machine``."""
    table = load_calibration()
    if step.device != "cuda":
        cpu = table.cpu
        # Cores share the memory bandwidth: more than 16 hardly help.
        cores = min(machine.cpu_cores, 16)
        return Throughput(cpu.layer_pass_s, cpu.tflops_per_core * cores * 1e12, overlaps=False)
    gpu, engine = usable_gpus(machine)[0], table.engines[step.engine]
    shares = next((own for name, own in table.devices.items() if name in gpu.name), engine)
    share = shares.recompute_share if step.checkpointing else shares.share
    # float32 products run on the 19-bit tensor cores at best, at half the 16-bit rate.
    rate = share * gpu.tflops_16bit * 1e12 / (2 if step.precision == "fp32" else 1)
    overlaps = engine.recompute_overlaps or not step.checkpointing
    return Throughput(engine.layer_pass_s, rate, overlaps)


def micro_batch_s(
    step: StepConfig,
    spec: ModelSpec,
    machine: Machine,
    mean_tokens: float,
    longest: int,
    rank: int = 16,
) -> float:
    """Predict the seconds of the forward and backward pass of one micro-batch."""
    throughput = throughput_of(step, machine)
    if step.traits.packs:
        return _fused_micro_batch_s(step, spec, machine, mean_tokens, rank)
    # Weights are gathered once forward and once backward, while the GPU computes.
    gathering = 2 * gather_s(step, spec)
    # Forward 1, backward 2, and the forward once more where activations are recomputed.
    launch = (4 if step.checkpointing else 3) * spec.layers * throughput.layer_pass_s
    tokens = computed_tokens(step, mean_tokens, longest)
    arithmetic = (
        tokens
        * flops_per_token(spec, mean_tokens, checkpointing=step.checkpointing)
        / throughput.rate
    )
    computing = max(launch, arithmetic) if throughput.overlaps else launch + arithmetic
    return spec.time_margin * max(gathering, computing)


FP8_SPEEDUP = 1.54
"""Speedup of frozen products in fp8, with the rounding of their inputs included."""
FP8_LAUNCH_RATIO = 1.96
"""Launch time of a layer's kernels in fp8 relative to 16-bit."""
DEQUANTIZE_FLOPS = 1670.0
"""Effective FLOPs to dequantise one 4-bit weight (fitted on an H100)."""
LORA_FLOPS = 28.0
"""Effective FLOPs per token and LoRA parameter: far above 2, as small matmuls run below peak."""
RECOMPUTE_COST = 0.73
"""Cost of recomputation relative to its FLOP count: below 1, because it is almost pure matmul."""


def _fused_micro_batch_s(
    step: StepConfig, spec: ModelSpec, machine: Machine, mean_tokens: float, rank: int
) -> float:
    """Predict a fused pass: frozen products, small LoRA products, and weights to dequantise."""
    tokens = step.micro_batch * mean_tokens - (step.micro_batch - 1) * step.shared_tokens
    share = step.recomputed_layers / spec.layers
    once, twice = (
        flops_per_token(spec, mean_tokens, checkpointing=again) for again in (False, True)
    )
    # A recomputed layer skips the last product of the feed-forward network.
    down = 2 * spec.hidden * spec.intermediate * spec.layers
    flops = tokens * (
        once
        + share * RECOMPUTE_COST * (twice - once - down)
        + LORA_FLOPS * spec.lora_parameters(rank)
    )
    if step.quantization == "fp8":
        products = 4 * spec.linear_parameters * tokens * (1 + share * RECOMPUTE_COST / 2)
        flops -= products * (1 - 1 / FP8_SPEEDUP)
    if step.quantization == "4bit":
        flops += (2 + share) * spec.linear_parameters * DEQUANTIZE_FLOPS
    throughput = throughput_of(step, machine)
    launch = (2 + share * 0.29) * spec.layers * throughput.layer_pass_s
    if step.quantization == "fp8":
        launch *= FP8_LAUNCH_RATIO
    # The CPU launches kernels while the GPU computes; at similar speeds each waits for the other.
    return (launch**3 + (flops / throughput.rate) ** 3) ** (1 / 3)


GATHER_BANDWIDTH = 100e9
"""Bytes per second of split weights that a GPU receives over NVLink: a rough figure."""


def gather_s(step: StepConfig, spec: ModelSpec) -> float:
    """Predict the seconds to gather all split weights once."""
    if step.shards == 1 or step.device != "cuda":
        return 0.0
    whole = weight_bytes(spec, step.quantization, 2.0)
    return whole * (1 - 1 / step.shards) / GATHER_BANDWIDTH


def gradient_exchange_s(step: StepConfig, processes: int) -> float:
    """Predict the seconds of the gradient exchange, which does not grow with the tokens."""
    if processes == 1 or step.device != "cuda":
        return 0.0
    return load_calibration().exchange_s


def flops_per_token(spec: ModelSpec, length: float, *, checkpointing: bool) -> float:
    """Count the FLOPs per token of a LoRA step; frozen weights need no gradient of their own.

    Each weight takes two forward and two backward; causal attention spans ``length`` tokens.
    """
    attention = 2 * spec.heads * spec.head_dim * length * spec.layers
    blocks = 2 * (spec.computed_parameters - spec.head_parameters)
    head = 2 * spec.head_parameters
    recomputed = blocks + attention if checkpointing else 0
    return 2 * blocks + 2 * head + 3.5 * attention + recomputed


def computed_tokens(step: StepConfig, mean_tokens: float, longest: int) -> float:
    """Return the tokens that a micro-batch computes on average, padding included."""
    rows = step.micro_batch
    if step.packing or rows == 1:
        return rows * mean_tokens
    # The expected maximum of n normal draws, in standard deviations, within 3 % up to n = 64.
    deviations = 0.56 * math.log2(rows) ** 0.85
    spread = max(0.0, longest - mean_tokens) / 3
    return rows * min(float(longest), mean_tokens + deviations * spread)


def is_measured(device: str, engine: EngineName, machine: Machine) -> bool:
    """Tell whether the times rest on measured runs of this engine on this kind of device."""
    if device != "cuda":
        return device == "cpu"
    table = load_calibration()
    known = (table.device, *(() if TRAITS[engine].packs else table.devices))
    return any(name in usable_gpus(machine)[0].name for name in known)


def _bandwidth(step: StepConfig, machine: Machine) -> float:
    """Return the bytes of weights that are read per second while a token is generated."""
    return usable_gpus(machine)[0].bandwidth_gb_s * 1e9 if step.device == "cuda" else CPU_BANDWIDTH


def loading_s(step: StepConfig, spec: ModelSpec) -> float:
    """Predict the seconds for imports and for reading the model's files from a disk at 1 GB/s."""
    return step.traits.import_s + stored_bytes(spec) / 1e9


def stored_bytes(spec: ModelSpec) -> float:
    """Return the size of a model's files, whose layers are in 16 bits or quantized."""
    return weight_bytes(spec, spec.stored, 2.0)


def evaluation_s(
    config: RunConfig,
    step: StepConfig,
    spec: ModelSpec,
    machine: Machine,
    mean_tokens: float,
    answer_rows: int,
) -> float:
    """Predict roughly the seconds of all evaluations, before and after training.

    ``answer_rows`` prompts are answered at once.
    """
    throughput = throughput_of(step, machine)
    choices = sum(BUNDLED_QUESTIONS if name == "sample" else 1000 for name in config.mcq)
    if config.mcq_samples:
        choices = min(choices, config.mcq_samples * len(config.mcq))
    read = 4 * min(config.thought_samples, config.generate_samples, config.test_samples)
    orders = (config.mcq_orders or ALL_ORDERS) if config.mcq_method == "likelihood" else 1
    options = choices * OPTIONS_TOKENS * (1 + ORDER_COST * (orders - 1))
    answers = count_answers(config)
    tokens = (config.test_samples + read) * mean_tokens + options
    tokens += answers * config.max_new_tokens
    score = tokens * 2 * spec.computed_parameters / throughput.rate
    on_cpu = step.device != "cuda"
    rounds = math.ceil(answers / answer_rows)
    weights = weight_bytes(spec, step.quantization, 4.0 if on_cpu else 2.0)
    one_token = spec.layers * throughput.layer_pass_s / 2
    one_token += weights / _bandwidth(step, machine) + gather_s(step, spec)
    scoring = score + rounds * config.max_new_tokens * one_token
    return count_scorings(config) * scoring * spec.time_margin


def count_answers(config: RunConfig) -> int:
    """Return how many answers each evaluation generates: test rows, fixed question, items."""
    items = min(config.ability_samples, BUNDLED_ABILITIES[config.language])
    rows = config.test_samples if config.generates_to_score else config.generate_samples
    return min(rows, config.test_samples) + 1 + items


def count_scorings(config: RunConfig) -> float:
    """Return how many evaluations a run takes: before, after, and the losses of other seeds."""
    share = 1.0 if config.generates_to_score else LOSSES_ALONE
    return 2 + (config.seeds - 1) * share


def count_seeds_at_once(
    seeds: int, machine: Machine, device: str, train_s: float, peak_gib: float, limit_gib: float
) -> int:
    """Return how many seeds train at the same time, each in a process of its own.

    Each GPU takes one. CPU cores are shared by as many as memory holds, where a training of
    ``train_s`` seconds is worth a process.
    """
    if machine.processes > 1:
        return 1
    if device == "cuda":
        return min(seeds, len(usable_gpus(machine)))
    if device != "cpu" or machine.cpu_cores < 2 or train_s < WORTH_A_PROCESS_S:
        return 1
    held = int((limit_gib - STARTER_GIB) / (PEAK_MARGIN * peak_gib))
    return max(1, min(seeds, 2 * machine.cpu_cores, held))


def count_rounds(seeds: int, at_once: int, device: str) -> float:
    """Return how many times as long as one training those of all seeds take."""
    if device == "cuda":
        return math.ceil(seeds / at_once)
    return seeds / SHARED_CORES if at_once > 1 else seeds
