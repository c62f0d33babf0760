"""Thoughts changed on purpose: the same rows, whatever is done to their thoughts."""

from collections import Counter

import pytest

from medcot.config.presets import make_config
from medcot.data.thoughts import change_thoughts
from medcot.engines.loading import load_tokenizer
from medcot.errors import InputError
from medcot.hardware.machine import detect_machine
from medcot.pipeline import prepare
from medcot.runs.directory import RunDirectory
from tests.support.fakes import make_case
from tests.support.short_runs import SHORT, write_rows

CASES = [
    make_case(number, thought=" ".join(f"w{number}-{at}" for at in range(number + 1)))
    for number in range(20)
]


def change(how, cases=CASES, **changes):
    config = make_config("demo", {"thought": how, **changes})
    return list(change_thoughts(cases, cases, config))


def test_shuffled_words_are_the_same_words_with_the_same_spaces_between_them():
    case = make_case(1, thought="Fever: high.\n\nSo an infection  of the airways, I think.")
    (found,) = change("shuffled", [case])
    assert found.thought != case.thought
    assert Counter(found.thought.split()) == Counter(case.thought.split())
    spaces = ["".join(c if c.isspace() else "" for c in one.thought) for one in (found, case)]
    assert spaces[0] == spaces[1]
    assert (found.question, found.response) == (case.question, case.response)
    assert change("shuffled", [case]) == [found]
    assert change("shuffled", [case], seed=1) != [found]
    assert change("shuffled", [case], seed=1, choice_seed=3407) == [found]


def test_chinese_is_shuffled_by_characters():
    (found,) = change("shuffled", [make_case(1, thought="患者发热三天，体温 38.5 度，考虑感染。")])
    assert Counter(found.thought) == Counter("患者发热三天，体温 38.5 度，考虑感染。")
    assert "38.5" in found.thought
    assert not found.thought.startswith("患者发热")


def test_another_thought_is_one_of_another_row_and_seldom_longer():
    found = change("another")
    for own, one in zip(CASES, found, strict=True):
        assert one.thought != own.thought
        assert one.thought in [case.thought for case in CASES]
        assert len(one.thought) <= len(own.thought) or own is CASES[0]
    assert change("another") == found
    assert change("another", seed=1) != found


def test_equal_thoughts_have_no_other():
    with pytest.raises(InputError, match="no training row has another thought"):
        change("another", [make_case(number, thought="Equal.") for number in range(3)])


def test_every_variant_trains_on_the_same_rows(tiny_model, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl")
    config = make_config("demo", SHORT | {"model": str(tiny_model), "dataset": str(rows)})
    tokenizer, dataset = load_tokenizer(config), prepare.load_dataset(config)

    def decide(how, **changes):
        own = config.model_copy(update={"thought": how, **changes})
        return prepare._decide(own, RunDirectory("."), detect_machine(), dataset, tokenizer)

    kept = decide("train")
    # Rows at the limit would be replaced by others if they were chosen without their thoughts.
    longest = {"max_length": max(map(len, kept.rows))}
    found = {how: decide(how, **longest) for how in ("train", "removed", "shuffled", "another")}
    ids = {tuple(row.id for row in one.rows) for one in found.values()}
    assert ids == {tuple(row.id for row in kept.rows)}
    assert max(len(row) for one in found.values() for row in one.rows) == longest["max_length"]
    texts = {how: tokenizer.decode(one.rows[0].completion_ids) for how, one in found.items()}
    assert len(set(texts.values())) == 4
    assert {text.partition("</think>")[2] for how, text in texts.items() if how != "removed"} == {
        "\n\n" + texts["removed"]
    }
    validated = [tokenizer.decode(one.validation[0].completion_ids) for one in found.values()]
    assert len(set(validated)) == 4
    tested = {tuple((case.id, case.response) for case in one.suite.cases) for one in found.values()}
    assert len(tested) == 1
    assert found["shuffled"].suite.cases == kept.suite.cases
    assert not any(case.thought for case in found["removed"].suite.cases)
