"""Answers in slots are those of one prompt at a time, whatever ends when."""

import gc
import weakref

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from medcot.config.schema import TARGET_MODULES
from medcot.engines.base import LoadedModel
from medcot.engines.hf import HfEngine
from medcot.inference.continuous_batching import Decoder, decode, suits
from medcot.inference.generate import generate
from tests.support.fakes import make_tiny_model

PROMPTS = [[5, 6, 7, 8], [9], [11, 12, 13, 14, 15, 16, 17], [300, 200], [21, 22, 23], [8, 8, 8, 9]]
LIMITS = [9, 40, 1, 23, 3, 70]
NEVER = -1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    # Weights large enough that what comes next depends on what came before.
    return make_tiny_model(tmp_path_factory.mktemp("lively"), initializer_range=0.4)


@pytest.fixture
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def one_at_a_time(model, prompts, limits, end):
    answers = []
    for prompt, limit in zip(prompts, limits, strict=True):
        ids = list(prompt)
        while len(ids) < len(prompt) + limit and (len(ids) == len(prompt) or ids[-1] != end):
            ids.append(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item())
        answers.append(ids[len(prompt) :])
    return answers


@pytest.mark.parametrize("slots", [1, 2, 4, 6])
@torch.no_grad()
def test_slots_are_filled_again_and_moved_together_without_changing_an_answer(model, slots):
    expected = one_at_a_time(model, PROMPTS, LIMITS, NEVER)
    assert decode(model, PROMPTS, LIMITS, NEVER, slots) == expected
    assert [len(answer) for answer in expected] == LIMITS
    end = expected[-1][len(expected[-1]) // 2]
    ended = one_at_a_time(model, PROMPTS, LIMITS, end)
    assert ended[-1][-1] == end
    assert decode(model, PROMPTS, LIMITS, end, slots) == ended


@torch.no_grad()
def test_looking_at_tokens_in_handfuls_changes_no_answer(model, monkeypatch):
    monkeypatch.setattr("medcot.inference.continuous_batching.STEPS", {"cpu": 8})
    monkeypatch.setattr("medcot.inference.continuous_batching.REFILL_SHARE", {"cpu": 2})
    expected = one_at_a_time(model, PROMPTS, LIMITS, NEVER)
    assert decode(model, PROMPTS, LIMITS, NEVER, 4) == expected


@torch.no_grad()
def test_an_adapter_speaks_in_slots_too(model):
    plain = one_at_a_time(model, PROMPTS, LIMITS, NEVER)
    tuned = get_peft_model(model, LoraConfig(target_modules=list(TARGET_MODULES))).eval()
    torch.manual_seed(1)
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            weight.normal_(std=0.1)
    expected = one_at_a_time(tuned, PROMPTS, LIMITS, NEVER)
    assert expected != plain
    assert decode(tuned, PROMPTS, LIMITS, NEVER, 4) == expected


def test_a_finished_decoder_leaves_the_models_own_attention(model):
    usual = model.config._attn_implementation
    with torch.no_grad():
        Decoder(model, PROMPTS, LIMITS, NEVER, 4).run()
    assert model.config._attn_implementation == usual


@torch.no_grad()
def test_the_slots_are_gone_once_the_answers_are_there(model):
    decoder = Decoder(model, PROMPTS, LIMITS, NEVER, 4)
    decoder.run()
    slots = weakref.ref(decoder.slots)
    del decoder
    gc.collect()
    assert slots() is None


def test_a_model_with_rules_or_windows_of_its_own_is_answered_the_plain_way(model, tmp_path):
    assert suits(model)
    model.generation_config.repetition_penalty = 1.3
    assert not suits(model)
    model.generation_config.repetition_penalty = None
    model.config.sliding_window = 64
    assert not suits(model)


def test_whatever_fails_in_slots_is_done_the_plain_way_with_a_warning(folder, model):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    loaded = LoadedModel(model, tokenizer, HfEngine(), "cpu", answer_rows=2)
    prompts = ["One.", "Another one, longer.", "A third."]
    expected = generate(loaded, prompts, 9)

    def off(module, arguments, output):
        return output * 1.5 if output.shape[1] == 1 else output

    model.model.layers[0].self_attn.q_proj.register_forward_hook(off)
    loaded.model = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    with pytest.warns(UserWarning, match="slower way: RuntimeError: decoding in slots is off by"):
        other = generate(loaded, prompts, 9)
    assert len(other) == len(expected)
    # Once is enough.
    assert generate(loaded, prompts, 9) == other
