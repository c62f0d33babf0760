"""Fine-tune a small reasoning model on medical chain-of-thought data, and learn whether it helped.

The command line, the notebook and the Kaggle kernel all call :func:`medcot.pipeline.run.run`
with a :class:`~medcot.config.schema.RunConfig`. ``docs/architecture.md`` maps the packages and
their layers. Importing this package does not import torch: each name loads on first use.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medcot.config.presets import make_config
    from medcot.config.schema import RunConfig
    from medcot.data.dataset import load_dataset
    from medcot.planning.plan import make_plan
    from medcot.records import Case, Question
    from medcot.runs.directory import RunDirectory

__version__ = "0.1.0"

if sys.platform == "darwin":
    # What a Mac's GPU cannot do then runs on the CPU. torch reads this when it is imported.
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

__all__ = [
    "Case",
    "Question",
    "RunConfig",
    "RunDirectory",
    "load_dataset",
    "make_config",
    "make_plan",
]

_MODULES = {
    "Case": "medcot.records",
    "Question": "medcot.records",
    "RunConfig": "medcot.config.schema",
    "RunDirectory": "medcot.runs.directory",
    "load_dataset": "medcot.data.dataset",
    "make_config": "medcot.config.presets",
    "make_plan": "medcot.planning.plan",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'medcot' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
