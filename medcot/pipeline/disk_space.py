"""Estimates what a run writes, so that a disk that is too full is refused before any work."""

from __future__ import annotations

import shutil

from medcot.config.schema import RunConfig
from medcot.errors import InputError
from medcot.planning.plan import Plan
from medcot.planning.speed_model import count_answers
from medcot.runs.directory import RunDirectory

CHECKPOINTS = 3
"""Two are kept while a third is written."""
BYTES_PER_PARAMETER = 12
"""Of a checkpoint: a float32 weight and the two moments of AdamW."""
BYTES_OF_BEST = 4
"""Of a checkpoint, for each parameter: the weights with the lowest validation loss."""
BYTES_PER_TOKEN = 16
"""Of a generated answer: its text is stored as output, thought and answer."""
FIXED = 16 << 20
"""Bytes for tokenizer files, prompts, events, report and figures."""


def estimate_bytes(config: RunConfig, plan: Plan) -> int:
    """Return about how many bytes a new run writes to its directory."""
    trained = plan.trainable_parameters
    return (
        (CHECKPOINTS * (BYTES_PER_PARAMETER + BYTES_OF_BEST) * trained + 4 * trained)
        * (config.seeds + (config.seeds > 1))
        + 2 * count_answers(config) * config.max_new_tokens * BYTES_PER_TOKEN
        + FIXED
    )


def require_space(directory: RunDirectory, config: RunConfig, plan: Plan) -> None:
    """Check that a new run has room.

    Raises:
        InputError: The file system has less free space than the run will write.
    """
    folder = directory.path.absolute()
    while not folder.exists():
        folder = folder.parent
    free, needed = shutil.disk_usage(folder).free, estimate_bytes(config, plan)
    if free < needed:
        raise InputError(
            f"--out {directory.path}",
            f"{free >> 20:,} MiB are free, and the run writes about {needed >> 20:,} MiB",
            "free some space, or use a folder on another disk",
        )
