"""The libraries that load a model, each a module with ``load_base`` and ``add_adapter``."""

from __future__ import annotations

import logging
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
