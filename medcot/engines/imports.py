"""Imports large libraries without the garbage collector."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the garbage collector while large libraries are imported.

    What PyTorch, transformers and TRL define lives as long as the process. The collector would
    visit it a dozen times during the imports, and again in each later collection. It is set apart
    for good if no model has been loaded yet, so that no tensor is set apart with it.
    """
    before_any_model = "peft" not in sys.modules
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before_any_model and "peft" in sys.modules:
            gc.freeze()
        if enabled:
            gc.enable()
