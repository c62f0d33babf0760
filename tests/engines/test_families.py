"""Models of many families, tiny and random: each trains, is saved, loaded by plain peft, and asked.

Four families run by default, and Qwen3 with the fused engine. MEDCOT_ALL_FAMILIES=1 runs all of
them: docs/models.md.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.families import FAMILIES, follow_family

DEFAULT = ("qwen3_5_text", "gemma3_text", "phi3", "gpt_oss")
"""Layers with a state, a window, joined layers, experts."""
CHOSEN = FAMILIES if os.environ.get("MEDCOT_ALL_FAMILIES") else DEFAULT


@pytest.mark.parametrize(
    ("family", "engine"), [*((family, "auto") for family in CHOSEN), ("qwen3", "fused")]
)
def test_a_family_trains_is_saved_loaded_by_plain_peft_and_asked(
    family: str, engine: str, tmp_path: Path
) -> None:
    merges = family == "gpt_oss" or (CHOSEN is FAMILIES and family != "gemma3")
    seen = follow_family(tmp_path, family, engine=engine, merges=merges)
    assert seen.planned == seen.trained == seen.by_peft
    # What was trained is the loss of the completions, as the model itself computes it.
    # (GPT-2 trains with a dropout of its own.)
    assert seen.first_loss == pytest.approx(seen.first_by_peft, abs=5e-3)
    assert seen.after == pytest.approx(seen.after_by_peft, abs=2e-3)
    assert seen.after < seen.before
    assert seen.answer_tokens == 3
    assert seen.merged in (("same", "changed") if merges else ("not asked for",))
