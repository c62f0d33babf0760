"""One question to two models: both answers, in a terminal side by side, elsewhere in turn."""

import io
import json

import pytest
from rich.console import Console

from medcot.cli.compare import show_replies, write_replies
from medcot.cli.main import main
from medcot.comparing import answers
from medcot.comparing.answers import TwoReplies, ask_both
from medcot.comparing.sides import choose_sides
from medcot.config.presets import make_config
from medcot.errors import InputError
from medcot.inference.ask import StreamedReply
from medcot.runs.directory import RunDirectory


@pytest.fixture
def directory(tmp_path):
    directory = RunDirectory(tmp_path / "flu")
    directory.create(make_config("demo"))
    directory.adapter.mkdir()
    (directory.adapter / "adapter_config.json").write_text("{}")
    return directory


def growing(*texts, closed=True):
    for count in range(1, len(texts) + 1):
        told = " ".join(texts[:count])
        last = count == len(texts)
        yield StreamedReply("A cough", told if closed else "", closed, not last or closed, count, 9)


@pytest.fixture
def answering(monkeypatch):
    """Lets the base say ``Cold or flu`` and the tuned model ``Flu [b]now``."""

    def ask(directory, question, *, base, max_new_tokens):
        return growing("Cold", "or", "flu") if base else growing("Flu", "[b]now\x1b[2J")

    monkeypatch.setattr(answers, "ask", ask)


def test_both_replies_grow_one_after_the_other(directory, answering):
    grown = list(ask_both(*choose_sides([directory]), "Why?"))
    assert [(one.first.answer, one.second and one.second.answer) for one in grown] == [
        ("Cold", None), ("Cold or", None), ("Cold or flu", None),
        ("Cold or flu", "Flu"), ("Cold or flu", "Flu [b]now\x1b[2J"),
    ]  # fmt: skip


def test_without_a_terminal_each_word_is_written_once(directory, answering):
    sides = choose_sides([directory])
    text = "".join(write_replies(ask_both(*sides, "Why?"), sides))
    assert text.count("Cold") == text.count("Flu") == 1
    assert text.index("base\n====") < text.index("Cold or flu") < text.index("tuned\n====")
    cut = [TwoReplies(reply) for reply in growing("x", "y", closed=False)]
    assert "not closed within 9 tokens" in "".join(write_replies(iter(cut), sides))


def test_a_terminal_shows_them_side_by_side(directory, answering, capsys):
    sides, out = choose_sides([directory]), io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, height=20, color_system=None)
    show_replies(ask_both(*sides, "Why?"), sides, console)
    final = out.getvalue().rpartition("base")[2]
    (line,) = [line for line in final.splitlines() if "Cold or flu" in line]
    assert "Flu [b]now" in line
    assert "\x1b[2J" not in out.getvalue()
    assert "not medical advice" in capsys.readouterr().out


def test_the_command_prints_both_as_facts(directory, answering, capsys):
    main(["compare", "--run", str(directory.path), "--json", "Why?"])
    facts = json.loads(capsys.readouterr().out)
    assert (facts["first"]["run"], facts["first"]["answer"]) == ("base", "Cold or flu")
    assert facts["second"]["model"] == "tuned"
    assert "not medical advice" in facts["second"]["note"]


def test_a_run_without_an_adapter_is_refused_before_a_model_is_loaded(directory, tmp_path):
    other = RunDirectory(tmp_path / "other")
    other.create(make_config("demo"))
    with pytest.raises(InputError, match="other: the run has no adapter"):
        next(ask_both(*choose_sides([directory, other]), "Why?"))
