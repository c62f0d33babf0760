"""Changes to other libraries, all in this place: what is changed, and what it is needed for."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

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


def provide_loss() -> None:
    """Give TRL this loss where it found no Triton; elsewhere its own is the faster one."""
    import trl.trainer.utils

    from medcot.engines.fused.cross_entropy import ChunkedLogProb

    name = "_ChunkedLogProbFunction"
    if getattr(trl.trainer.utils, name) is None:
        setattr(trl.trainer.utils, name, ChunkedLogProb)


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
