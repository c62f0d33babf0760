"""Changes to other libraries, all in this place: what is changed, and what it is needed for."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

LIBRARIES = ("trl", "transformers", "accelerate", "unsloth")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' hints about what medcot chose for them off the terminal."""
    levels = {name: logging.getLogger(name).level for name in LIBRARIES}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in LIBRARIES:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def deny_jupyter() -> None:
    """Let transformers, trl and unsloth be imported where marimo is: in every way of the notebook.

    ``transformers.utils.is_in_notebook`` is true as soon as marimo is among the modules, and its
    ``Trainer`` then imports a progress bar that needs IPython, which marimo does not.
    """
    if "marimo" not in sys.modules:
        return  # Without it nothing is to be imported before unsloth, which patches what it finds.
    from transformers import utils
    from transformers.utils import import_utils

    for module in (utils, import_utils):
        vars(module)["is_in_notebook"] = lambda: False


def provide_loss(function: type[torch.autograd.Function]) -> None:
    """Give TRL ``function`` where it found no Triton; elsewhere its own is the faster one."""
    import trl.trainer.utils

    name = "_ChunkedLogProbFunction"
    if getattr(trl.trainer.utils, name) is None:
        setattr(trl.trainer.utils, name, function)


def disable_unsloth_statistics() -> None:
    """Keep unsloth from reporting its use over the network, unless the user allows it."""
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")


def let_allocator_grow() -> None:
    """Let CUDA's allocator grow its blocks: rows of ever other length would fragment them.

    It is read when CUDA makes its first block.
    """
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")


def keep_accelerate_from_splitting() -> None:
    """Keep accelerate from sharding a model a second time, its own way (1.13 to 1.15).

    ``accelerate launch --use_fsdp`` sets the variable, by which medcot also knows that weights are
    to be sharded; from here on accelerate alone would read it.
    """
    os.environ["ACCELERATE_USE_FSDP"] = "false"


def name_cpu_without_number() -> None:
    """Let runs of several CPU processes be resumed (accelerate 1.13 to 1.15).

    accelerate numbers CPUs, and ``torch.load`` refuses "cpu:0" when it reads a checkpoint.
    """
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"


@contextmanager
def unhurried_optimizer() -> Iterator[None]:
    """Within, 8-bit optimizers do not wait for the GPU after each of hundreds of parameters.

    bitsandbytes 0.50 does, which is needed for paged states alone: everything here runs in the
    order of one stream.
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
