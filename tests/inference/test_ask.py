"""One question, from the run directory to text and facts."""

import pytest

from medcot.config.presets import make_config
from medcot.errors import InputError
from medcot.inference import ask as asking
from medcot.inference.ask import StreamedReply, ask, describe_reply, write_reply
from medcot.records import Generation
from medcot.runs.directory import RunDirectory


@pytest.fixture
def answering(tmp_path, monkeypatch):
    """Returns a function that lets a run's model answer with given texts."""
    directory = RunDirectory(tmp_path / "run")
    directory.create(make_config("demo", {"style": "tutorial"}))
    monkeypatch.setattr(asking, "load_run", lambda *_, **__: type("Loaded", (), {"chat": None})())
    monkeypatch.setattr("medcot.engines.loading.release", lambda loaded: None)

    def answer(*texts, finished=True):
        whole = [Generation(text, count, False) for count, text in enumerate(texts, 1)]
        whole.append(Generation(texts[-1], len(texts), finished))
        monkeypatch.setattr("medcot.inference.generate.stream", lambda *_: iter(whole))
        return ask(directory, "Why?", base=True, max_new_tokens=9)

    return answer


def test_text_for_a_terminal_is_thought_answer_and_what_it_is_not(answering):
    pieces = answering(
        "A cough", "A cough.</thi", "A cough.</think>\nFlu", "A cough.</think>\nFlu."
    )
    told = "".join(write_reply(pieces))
    assert told.startswith("Thought\n-------\nA cough.\n\nAnswer\n------\nFlu.\n\n")
    assert "not medical advice" in told
    assert "think" not in told


def test_a_run_without_thoughts_asks_for_none_and_shows_the_answer(answering, tmp_path):
    pieces = answering("", "Flu", "Flu.")
    directory = RunDirectory(tmp_path / "run")
    directory.write_json("config.json", {"style": "tutorial", "thought": "none", "preset": "demo"})
    replies = list(pieces)
    told = "".join(write_reply(replies))
    assert told.startswith("Answer\n------\nFlu.\n\n")
    assert (replies[-1].thought, replies[-1].answer, replies[-1].closed) == ("", "Flu.", True)


def test_a_thought_that_is_never_closed_has_no_answer(answering):
    told = "".join(write_reply(answering("A cough", "A cough and", finished=False)))
    assert "A cough and\n\n(no answer: the thought was not closed within 9 tokens)" in told


def test_only_the_last_reply_says_that_it_was_cut_off(answering):
    replies = list(answering("A", "A b", finished=False))
    assert [reply.finished for reply in replies] == [True, True, False]
    assert replies[-1] == StreamedReply("A b", "", False, False, 2, 9)


def test_facts_are_those_of_the_whole_reply(answering):
    facts = describe_reply("Why?", answering("A", "A</think>B"), base=True)
    assert facts | {"note": ""} == {
        "model": "base", "question": "Why?", "thought": "A", "answer": "B", "closed": True,
        "finished": True, "tokens": 2, "note": "",
    }  # fmt: skip


def test_an_empty_question_is_refused_before_a_model_is_loaded(tmp_path):
    with pytest.raises(InputError, match="QUESTION"):
        next(ask(RunDirectory(tmp_path), "  "))
