"""The message catalog: whole in both languages, rendered late, kept as data."""

import json
import pickle

import pytest

from medcot.catalog import Message, Reason, either, say, words


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
