"""Models of many families, tiny and random: each trains, is saved, loaded by plain peft, and asked.

Four families run by default, and Qwen3 with the fused engine. MEDCOT_ALL_FAMILIES=1 runs all of
them: docs/models.md.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from medcot.engines.base import LoadedModel
from medcot.engines.hf import HfEngine
from medcot.inference import loglikelihood
from medcot.records import Prompt
from tests.support.fakes import make_case, make_small_tokenizer
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


POSITIONS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3},
    "opt": {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "init_std": 0.3},
    "llama": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
              "num_attention_heads": 4, "initializer_range": 0.3},
}  # fmt: skip
"""Two families that learn embeddings of positions, one with rotary ones."""


@pytest.mark.parametrize("family", POSITIONS)
def test_a_row_is_scored_alike_alone_and_beside_a_longer_one(family: str) -> None:
    """The padding before a short row moves no position."""
    loaded = load_family(family)
    texts = [("Why?", " Yes."), ("What is it that the patient has had since Monday?", " No, no.")]
    pairs = [Prompt(prompt, completion) for prompt, completion in texts]
    alone = [loglikelihood.score(loaded, [pair])[0].total for pair in pairs]
    both = [one.total for one in loglikelihood.score(loaded, pairs)]
    assert both == pytest.approx(alone, abs=1e-4)
    for options in ([" A", " B"], [" A", " all of them"]):
        items = [(prompt, options) for prompt, _ in texts]
        alone = [loglikelihood.score_options(loaded, [item])[0] for item in items]
        both = loglikelihood.score_options(loaded, items)
        for one, other in zip(alone, both, strict=True):
            assert [x.total for x in other] == pytest.approx([x.total for x in one], abs=1e-4)


def load_family(family: str) -> LoadedModel:
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    tokenizer: Any = make_small_tokenizer([make_case(n) for n in range(12)])
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    special = {name: getattr(tokenizer, name) for name in names}
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**POSITIONS[family], **special, vocab_size=len(tokenizer))
    model: Any = AutoModelForCausalLM.from_config(config)
    return LoadedModel(model.eval(), tokenizer, HfEngine(), "cpu", answer_rows=8)
