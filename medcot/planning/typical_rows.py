"""How long the rows of a data set are that was not loaded."""

from __future__ import annotations

from medcot.config.schema import MEDICAL_O1, RunConfig

TYPICAL_TOKENS = {MEDICAL_O1: (788.0, 2048)}
"""Mean and longest row, in tokens: medical-o1 with its prompt, by Llama 3's tokenizer. Other sets
are assumed to be like it."""


def typical_lengths(config: RunConfig) -> tuple[float, int]:
    """Return the mean and the longest row, in tokens, that are assumed for ``config.dataset``."""
    mean, longest = TYPICAL_TOKENS.get(config.dataset, TYPICAL_TOKENS[MEDICAL_O1])
    longest = min(longest, config.max_length)
    return min(mean, longest), longest
