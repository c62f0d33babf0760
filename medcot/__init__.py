"""Fine-tune a small reasoning model on medical chain-of-thought, and learn whether it helped.

Importing this package brings no torch: names are loaded when they are first used.
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
