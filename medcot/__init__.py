"""Fine-tune a small reasoning model on medical chain-of-thought data, and learn whether it helped.

The command line, the notebook and the Kaggle kernel all call :func:`medcot.pipeline.run.run`
with a :class:`~medcot.config.schema.RunConfig`. ``docs/architecture.md`` maps the packages and
their layers. Importing this package does not import torch: each name loads on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "RunConfig": "config.schema",
    "make_config": "config.presets",
    "Case": "records",
    "Question": "records",
    "RunDirectory": "runs.directory",
    "load_dataset": "data.dataset",
    "make_plan": "planning.plan",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"medcot.{_HOME[name]}"), name)
    raise AttributeError(f"module 'medcot' has no attribute {name!r}")
