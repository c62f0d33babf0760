"""The message catalog: whole in both languages, rendered late, kept as data."""

import ast
import json
import pickle
import re
import string

import pytest

from medcot.catalog import Message, Reason, either, say, words
from tests.support.paths import ROOT


def test_a_message_is_rendered_in_the_language_asked_for():
    message = Message("left_out", {"n": 3})
    assert str(message) == message.text("en") == "3 rows are left out"
    assert message.text("zh") == "有 3 行没有使用"


def test_a_message_within_a_message_follows_the_language_of_the_whole():
    inner = Message("failure_input")
    whole = Message("plain", {"text": inner})
    assert whole.text("zh") == inner.text("zh") != inner.text("en") == str(whole)


@pytest.mark.parametrize("kind", [Message, Reason])
def test_a_message_survives_json_and_pickle(kind):
    message = kind("left_out", {"n": Message("plain", {"text": "three"})})
    again = kind.from_json(json.loads(json.dumps(message.to_json())))
    assert again == message == pickle.loads(pickle.dumps(message))
    assert type(again) is kind
    assert message.to_json()["text"] == "three rows are left out"
    assert {message: 1}[again] == 1


def test_the_plain_sentence_of_an_older_file_stays_as_it_was():
    old = Reason.from_json("Device cpu: no usable GPU was found.")
    assert str(old) == old.text("zh") == "Device cpu: no usable GPU was found."


def test_a_missing_code_or_value_is_an_error():
    with pytest.raises(KeyError, match="no_such_code"):
        say("no_such_code", "en")
    with pytest.raises(KeyError, match="n"):
        say("left_out", "en")


def test_alternatives_are_joined_as_each_language_does():
    assert either(["a"]) == "a"
    assert str(either(["a", "b", "c"])) == "a or b or c"
    joined = either(["a", "b", "c"])
    assert isinstance(joined, Message)
    assert joined.text("zh") == "a、b 或者 c"


def test_no_template_is_empty():
    for language in ("en", "zh"):
        assert all(template.strip() for template in words(language).values())


def rendered_codes() -> tuple[set[str], list[re.Pattern[str]]]:
    """The codes that the sources name, and patterns of those that they put together."""
    whole: set[str] = set()
    built: list[re.Pattern[str]] = []
    for path in [*(ROOT / "medcot").rglob("*.py"), ROOT / "apps" / "tutorial.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                whole.add(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [
                    re.escape(str(part.value)) if isinstance(part, ast.Constant) else r"\w+"
                    for part in node.values
                ]
                if re.fullmatch(r"[a-z]+_", str(getattr(node.values[0], "value", ""))):
                    built.append(re.compile("".join(parts)))
    return whole, built


def test_every_code_of_the_catalog_is_used():
    whole, built = rendered_codes()
    unused = [
        code
        for code in words("en")
        if code not in whole and not any(pattern.fullmatch(code) for pattern in built)
    ]
    assert unused == []


def test_every_code_that_is_named_is_in_both_languages():
    called = {"Message", "Reason", "say", "note"}
    for path in [*(ROOT / "medcot").rglob("*.py"), ROOT / "apps" / "tutorial.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            first = node.args[0]
            # A listener's lines are whole sentences, not codes.
            if name in called and isinstance(first, ast.Constant) and " " not in str(first.value):
                for language in ("en", "zh"):
                    assert first.value in words(language), f"{path.name}: {first.value}"


def test_both_languages_format_the_same_values_alike():
    parse = string.Formatter().parse
    for code, english in words("en").items():
        theirs = [
            sorted(str(place[1:]) for place in parse(text) if place[1])
            for text in (english, words("zh")[code])
        ]
        assert set(theirs[0]) == set(theirs[1]), code
