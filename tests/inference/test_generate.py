import itertools

import pytest
import torch

from medcot.config.presets import make_config
from medcot.data.prompts import parse, render
from medcot.data.tokenization import encode, encode_text
from medcot.engines.loading import load_base
from medcot.hardware.machine import detect_machine
from medcot.inference import generate as generation
from medcot.inference import loglikelihood
from medcot.inference.generate import generate, stream
from medcot.inference.loglikelihood import SHARED_TOKENS, _list_families, score, score_options
from medcot.planning.model_specs import find_model_spec
from medcot.planning.plan import make_plan
from tests.support.fakes import make_case, make_talker


def load(folder):
    config = make_config("demo", {"model": str(folder)})
    plan = make_plan(config, detect_machine(), find_model_spec(config), 8, 100.0, 200)
    return load_base(config, plan)


@pytest.fixture(scope="module")
def loaded(tiny_model):
    return load(tiny_model)


@pytest.fixture(scope="module")
def pairs(loaded):
    words = ["Short.", "A somewhat longer thought about it. " * 3, "And one more."]
    return [
        render(make_case(number, thought=word), "chat", loaded.chat)
        for number, word in enumerate(words)
    ]


def test_batched_scores_are_those_of_one_row_at_a_time(loaded, pairs):
    together = score(loaded, pairs)
    for pair, loss in zip(pairs, together, strict=True):
        (row,) = encode(loaded.tokenizer, {"one": pair})
        ids = torch.tensor([row.prompt_ids + row.completion_ids])
        labels = torch.tensor([row.as_row()["labels"]])
        with torch.no_grad():
            mean = loaded.model(input_ids=ids, labels=labels).loss.item()
        assert loss.tokens == len(row.completion_ids)
        assert loss.mean == pytest.approx(mean, rel=1e-5)


def test_batched_answers_are_those_of_one_prompt_at_a_time(loaded, pairs):
    prompts = [pair.text for pair in pairs]
    together = generate(loaded, prompts, 12)
    assert together == [generate(loaded, [prompt], 12)[0] for prompt in prompts]
    assert all(one.tokens == 12 or one.finished for one in together)


def test_a_streamed_continuation_grows_to_the_generated_one(loaded, pairs):
    (whole,) = generate(loaded, [pairs[0].text], 12)
    grown = list(stream(loaded, pairs[0].text, 12))
    assert grown[-1] == whole
    for shorter, longer in itertools.pairwise(grown):
        assert longer.text.startswith(shorter.text)
        assert longer.tokens >= shorter.tokens


def test_a_failure_while_streaming_is_raised_where_it_is_waited_for(loaded, pairs, monkeypatch):
    def fail(*_arguments, **_options):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(loaded.model, "generate", fail)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        list(stream(loaded, pairs[0].text, 12))


def test_letters_score_as_they_do_as_continuations(loaded, pairs):
    letters = [" A", " B", " C"]
    fast = score_options(loaded, [(pairs[0].text, letters), (pairs[1].text, letters)])
    # A longer option takes the other way through the code for all of them.
    slow = score_options(
        loaded, [(pairs[0].text, [*letters, " D and E"]), (pairs[1].text, letters)]
    )
    for one, other in zip(fast, slow, strict=True):
        for a, b in zip(one, other, strict=False):
            assert a.total == pytest.approx(b.total, rel=1e-4)


def test_consecutive_prompts_are_grouped_by_a_long_common_beginning():
    stem = list(range(SHARED_TOKENS))
    prompts = [[*stem, 1, 2], [*stem, 1, 3], [*stem, 4], [5, 6], [*stem, 1]]
    assert _list_families(prompts) == [
        (SHARED_TOKENS, [0, 1, 2]),
        (1, [3]),
        (SHARED_TOKENS, [4]),
    ]


def test_prompts_that_begin_alike_share_a_pass_and_score_as_each_alone(loaded, pairs):
    letters = [" A", " B", " C"]
    stem = f"{pairs[1].text} Which of these treatments is the right one for this patient?"
    prompts = [f"{stem} {tail}\nAnswer:" for tail in ("A. rest B. ice", "A. ice B. a rest", "A")]
    prompts += [f"Something quite different. {pairs[0].text}", pairs[2].text, prompts[0]]
    together = score_options(loaded, [(prompt, letters) for prompt in prompts])
    alone = [score_options(loaded, [(prompt, letters)])[0] for prompt in prompts]
    for one, other in zip(together, alone, strict=True):
        assert [loss.total for loss in one] == pytest.approx([loss.total for loss in other])


def test_a_long_family_is_read_in_passes_of_limited_size(loaded, pairs, monkeypatch):
    letters, sizes, limit = [" A", " B"], [], 40
    prompts = [f"{pairs[1].text} Which of these is the right one for him, {n}?" for n in range(7)]
    wanted = [score_options(loaded, [(prompt, letters)])[0] for prompt in prompts]
    monkeypatch.setitem(loglikelihood.LOGIT_TOKENS, "cpu", limit)
    read = loglikelihood._read_families
    monkeypatch.setattr(
        loglikelihood,
        "_read_families",
        lambda model, families, ids: (
            sizes.append(sum(len(ids[one]) for _, members in families for one in members))
            or read(model, families, ids)
        ),
    )
    found = score_options(loaded, [(prompt, letters) for prompt in prompts])
    assert len(sizes) > 1
    assert max(sizes) <= 4 * limit
    for one, other in zip(found, wanted, strict=True):
        assert [loss.total for loss in one] == pytest.approx([loss.total for loss in other])


def test_options_after_a_prompt_read_once_score_as_whole_rows(loaded, pairs):
    items = [
        (pairs[0].text, [" yes", " no, it is not", " perhaps in some of them"]),
        (pairs[1].text, [" the second of two", " B"]),
        ("A", [" short one."]),
    ]
    together = score_options(loaded, items)
    for (prompt, texts), losses in zip(items, together, strict=True):
        start = encode_text(loaded.tokenizer, prompt)
        for text, loss in zip(texts, losses, strict=True):
            ids = loaded.tokenizer(text, add_special_tokens=False).input_ids
            with torch.no_grad():
                logits = loaded.model(input_ids=torch.tensor([start + ids])).logits[0]
            alone = torch.log_softmax(logits, -1)[len(start) - 1 : -1]
            expected = -alone.gather(1, torch.tensor(ids)[:, None]).sum().item()
            assert loss.total == pytest.approx(expected, rel=1e-5)
            assert loss.tokens == len(ids)


def test_generation_stops_at_the_end_token(loaded, pairs):
    end = loaded.tokenizer.eos_token_id
    head = loaded.model.get_output_embeddings()
    before = head.weight.data.clone()
    try:
        head.weight.data.zero_()  # every word is equally likely: the first id wins
        head.weight.data[end] = 0.0
        bias = torch.nn.Linear(head.in_features, head.out_features)
        bias.weight.data.zero_()
        bias.bias.data.zero_()
        bias.bias.data[end] = 1.0
        loaded.model.set_output_embeddings(bias)
        (reply,) = generate(loaded, [pairs[0].text], 12)
    finally:
        loaded.model.set_output_embeddings(head)
        head.weight.data.copy_(before)
    assert (reply.text, reply.tokens, reply.finished) == ("", 1, True)


@pytest.mark.parametrize("special", [["<think>", "</think>"], None])
@pytest.mark.parametrize("at_once", [1, 3])
def test_a_thought_is_closed_whether_its_tags_are_special_tokens_or_not(tmp_path, special, at_once):
    folder = make_talker(tmp_path / "model", ["So", "</think>", "Yes"], special=special)
    model = load(folder)
    for one in generate(model, ["Is it so?<think>\n"] * at_once, 8):
        reply = parse(one.text)
        assert (reply.thought, reply.answer, reply.closed) == ("So", "Yes", True)
        assert one.finished
    *_, streamed = stream(model, "Is it so?<think>\n", 8)
    assert parse(streamed.text).answer == "Yes"


@pytest.mark.parametrize("batches", [True, False])
def test_every_end_token_of_the_model_ends_an_answer(tmp_path, monkeypatch, batches):
    words = ["So", "</think>", "Yes", "<|endoftext|>", "No"]
    ends = ["<|im_end|>", "<|endoftext|>"]
    model = load(make_talker(tmp_path / "model", words, ends=ends))
    if batches:
        monkeypatch.setattr(generation, "_generate_continuously", lambda *arguments: None)
    (one,) = generate(model, ["Is it so?<think>\n"], 12)
    assert one.finished
    assert parse(one.text).answer == "Yes"
