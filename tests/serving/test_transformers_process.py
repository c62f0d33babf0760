"""transformers' own server, given a model: what it says is what the run says."""

import asyncio
import json

import httpx
import pytest

from medcot.config.presets import make_config
from medcot.data.prompts import parse
from medcot.runs.directory import RunDirectory
from medcot.serving.transformers_process import load_model, make_application
from tests.serving.conftest import BASE_ANSWER, THOUGHT, TUNED_ANSWER, WORDS
from tests.support.fakes import make_case, make_small_tokenizer, make_talker


def complete(loaded, **options):
    body = {"model": "model", "prompt": "Why?\n", "max_tokens": 24, "temperature": 0.0, **options}

    async def ask():
        transport = httpx.ASGITransport(make_application(loaded))
        async with httpx.AsyncClient(transport=transport, base_url="http://m") as client:
            return (await client.post("/v1/completions", json={**body, "stream": True})).text

    events = [json.loads(line[6:]) for line in asyncio.run(ask()).split("\n") if line]
    choices = [event["choices"][0] for event in events]
    return "".join(one["text"] for one in choices), choices[-1]["finish_reason"]


@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_an_export_answers_as_the_run(served_run, kind):
    merged = kind == "merged"  # Here that is the base: another answer shows which one was loaded.
    path = served_run.config().model if merged else served_run.adapter
    text, ending = complete(load_model(kind, path, served_run))
    reply = parse(text)
    assert (reply.thought, reply.answer) == (THOUGHT, BASE_ANSWER if merged else TUNED_ANSWER)
    assert ending == "stop"


def test_tags_that_are_special_tokens_are_shown_and_end_tokens_are_not(tmp_path):
    tokenizer = make_small_tokenizer([make_case(1)])
    tokenizer.add_tokens(WORDS)
    model = make_talker(tmp_path / "model", WORDS, special=["</think>"], tokenizer=tokenizer)
    directory = RunDirectory(tmp_path / "run")
    directory.create(make_config("demo", {"model": str(model)}))
    text, ending = complete(load_model("merged", model, directory))
    assert text == "".join(WORDS)
    assert ending == "stop"


def test_a_request_may_sample(served_run):
    loaded = load_model("merged", served_run.config().model, served_run)
    texts = {complete(loaded, temperature=2.0, seed=seed, max_tokens=2)[0] for seed in range(3)}
    assert texts == {"A cough"}, "these words are far more likely than all others"
    assert complete(loaded, temperature=2.0, max_tokens=2)[1] == "length"
