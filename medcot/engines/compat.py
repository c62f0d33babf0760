"""All that medcot changes in other libraries, each with versions, reason and a test.

``tests/engines/test_compat.py`` fails when a change is no longer needed. There are three kinds:
log messages that do not apply to medcot, functions that are replaced, environment variables.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KnownMessage:
    """A log message of a library that is silenced during training, because it does not apply.

    Attributes:
        logger: The logger that the library uses.
        part: A part of the message; accelerate puts the rank before it.
        versions: The versions in which it was seen.
        reason: Why it does not apply to medcot.
    """

    logger: str
    part: str
    versions: str
    reason: str


KNOWN_MESSAGES = (
    KnownMessage(
        "trl.trainer.sft_trainer",
        "Padding-free training is enabled, but the attention implementation is not set",
        "trl 1.15",
        "With unsloth the attention keeps rows apart by itself; elsewhere the planner packs rows "
        "for FlashAttention only.",
    ),
    KnownMessage(
        "trl.trainer.sft_trainer",
        "You are using a per_device_train_batch_size of 1 with padding-free training",
        "trl 1.15",
        "The planner chose one row per pass because no more fit into memory.",
    ),
    KnownMessage(
        "transformers.trainer_utils",
        "The tokenizer has new PAD/BOS/EOS tokens that differ from the model config",
        "transformers 5.16 to 5.17",
        "medcot chooses a pad token that is not EOS (base.settle_pad_token).",
    ),
)


class _Silence(logging.Filter):
    """Drops the records whose message holds ``part``."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self._part = part

    def filter(self, record: logging.LogRecord) -> bool:
        return self._part not in record.getMessage()


@contextmanager
def known_messages_silenced() -> Iterator[None]:
    """Silence :data:`KNOWN_MESSAGES` inside; every other message and warning goes its usual way."""
    with ExitStack() as stack:
        for message in KNOWN_MESSAGES:
            logger = logging.getLogger(message.logger)
            silence = _Silence(message.part)
            logger.addFilter(silence)
            stack.callback(logger.removeFilter, silence)
        yield


def deny_jupyter() -> None:
    """Let transformers, trl and unsloth be imported next to marimo (transformers 5.10 to 5.17).

    ``transformers.utils.is_in_notebook`` is True as soon as marimo is among the modules. Its
    ``Trainer`` then imports a progress bar that needs IPython, which marimo does not bring.
    """
    if "marimo" not in sys.modules:
        return  # unsloth patches what it finds, so nothing may be imported before it.
    from transformers import utils
    from transformers.utils import import_utils

    for module in (utils, import_utils):
        vars(module)["is_in_notebook"] = lambda: False


def ignore_old_torchao() -> None:
    """Let peft take a torchao that it refuses for a missing one (peft 0.19 to 0.21).

    peft then raises at the first LoRA layer that bitsandbytes did not quantize, though nothing
    here uses torchao. Kaggle's image of August 2026 brings torchao 0.10; peft wants 0.16.
    """
    from peft import import_utils
    from peft.tuners.lora import torchao
    from peft.utils import quantization_utils

    try:
        import_utils.is_torchao_available()
    except ImportError as error:
        logger.info("torchao counts as missing: %s", error)
        for module in (import_utils, torchao, quantization_utils):
            vars(module)["is_torchao_available"] = lambda: False


def repeat_shared_keys() -> None:
    """Let SDPA see repeated keys on a GPU below compute capability 8.0 (transformers 5.16 to 5.17).

    Without a mask transformers asks for ``enable_gqa``. PyTorch's memory-efficient kernel cannot
    do that, and such a GPU has no FlashAttention: the MATH kernel is left, which is slow and keeps
    every score in memory.
    """
    import torch

    if torch.cuda.get_device_capability() >= (8, 0):
        return
    from transformers.integrations import sdpa_attention

    module: ModuleType = sdpa_attention
    setattr(module, "use_gqa_in_sdpa", lambda *_: False)  # noqa: B010 - its type has no such name


def provide_loss(function: type[torch.autograd.Function], device: str) -> None:
    """Give TRL a chunked log-probability where its own cannot run on ``device`` (trl 1.15).

    Without Triton TRL leaves the name None. With Triton but no GPU, as PyTorch's default build for
    Linux on a plain machine, its function fails for want of a driver. On a GPU with Triton TRL's
    own function is the faster one and stays.
    """
    import trl.trainer.utils

    name = "_ChunkedLogProbFunction"
    if getattr(trl.trainer.utils, name) is None or device != "cuda":
        setattr(trl.trainer.utils, name, function)


@contextmanager
def unhurried_optimizer() -> Iterator[None]:
    """Keep 8-bit optimizers from waiting for the GPU after every parameter (bitsandbytes 0.50).

    Only paged optimizer states need that wait; everything here runs in the order of one stream.
    """
    try:
        from bitsandbytes.optim import optimizer  # pyright: ignore[reportMissingImports]
    except ImportError:
        yield
        return
    wait = optimizer.sync_gpu
    optimizer.sync_gpu = lambda _tensor: None
    try:
        yield
    finally:
        optimizer.sync_gpu = wait


def disable_unsloth_statistics() -> None:
    """Keep unsloth from reporting its use over the network, unless the user set the variable."""
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")


def let_allocator_grow() -> None:
    """Let CUDA's allocator extend its blocks: rows of changing length would fragment them.

    The variable is read when CUDA allocates first. A value of the user's own wins.
    """
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")


def fix_cublas_workspace() -> None:
    """Let cuBLAS reuse one workspace, without which its sums may differ from call to call.

    The variable is read when cuBLAS is first used. A value of the user's own wins.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def deterministic_kernels() -> Iterator[None]:
    """Make PyTorch choose kernels that give the same bits each time, or refuse where it has none.

    What changes in a training pass is the backward pass of attention, which otherwise adds up the
    gradients of the queries in any order (seen with torch 2.11 on an H100).
    """
    import torch

    settings: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled()
    filled = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(mode=True)
    # Filling new memory shows reads of what nobody wrote; it costs time and changes no result here.
    settings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode=before)
        settings.fill_uninitialized_memory = filled


def keep_accelerate_from_splitting() -> None:
    """Keep accelerate from sharding a model that is sharded already (accelerate 1.13 to 1.15).

    ``accelerate launch --use_fsdp`` sets the variable, which has told medcot by now that weights
    are to be sharded.
    """
    os.environ["ACCELERATE_USE_FSDP"] = "false"


def name_cpu_without_number() -> None:
    """Let runs of several CPU processes be resumed (accelerate 1.13 to 1.15, torch 2.11 to 2.14).

    accelerate numbers CPUs, and ``torch.load`` cannot read a checkpoint to "cpu:0".
    """
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
