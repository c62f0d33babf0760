"""Continuous batching gives the answers of one prompt at a time, whatever ends when."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from medcot.config.schema import TARGET_MODULES
from medcot.engines.base import LoadedModel
from medcot.engines.fallbacks import collect_fallbacks
from medcot.engines.hf import HfEngine
from medcot.inference.continuous_batching import Decoder, decode, is_supported
from medcot.inference.generate import generate
from medcot.inference.kv_cache import slot_attention
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
def test_refilling_and_moving_slots_changes_no_answer(model, slots):
    expected = one_at_a_time(model, PROMPTS, LIMITS, NEVER)
    assert decode(model, PROMPTS, LIMITS, {NEVER}, slots) == expected
    assert [len(answer) for answer in expected] == LIMITS
    end = expected[-1][len(expected[-1]) // 2]
    ended = one_at_a_time(model, PROMPTS, LIMITS, end)
    assert ended[-1][-1] == end
    assert decode(model, PROMPTS, LIMITS, {end}, slots) == ended


@torch.no_grad()
def test_reading_tokens_every_few_steps_changes_no_answer(model, monkeypatch):
    monkeypatch.setattr("medcot.inference.continuous_batching.STEPS", {"cpu": 8})
    monkeypatch.setattr("medcot.inference.continuous_batching.REFILL_SHARE", {"cpu": 2})
    expected = one_at_a_time(model, PROMPTS, LIMITS, NEVER)
    assert decode(model, PROMPTS, LIMITS, {NEVER}, 4) == expected


@torch.no_grad()
def test_a_model_with_an_adapter_is_batched_continuously_too(model):
    plain = one_at_a_time(model, PROMPTS, LIMITS, NEVER)
    tuned = get_peft_model(model, LoraConfig(target_modules=list(TARGET_MODULES))).eval()
    torch.manual_seed(1)
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            weight.normal_(std=0.1)
    expected = one_at_a_time(tuned, PROMPTS, LIMITS, NEVER)
    assert expected != plain
    assert decode(tuned, PROMPTS, LIMITS, {NEVER}, 4) == expected


def test_a_finished_decoder_restores_the_models_own_attention(model):
    usual = model.config._attn_implementation
    with torch.no_grad():
        Decoder(model, PROMPTS, LIMITS, {NEVER}, 4).run()
    assert model.config._attn_implementation == usual


@torch.no_grad()
def test_the_kv_cache_is_freed_once_the_answers_are_there(model):
    decoder = Decoder(model, PROMPTS, LIMITS, {NEVER}, 4)
    decoder.run()
    slots = weakref.ref(decoder.slots)
    del decoder
    gc.collect()
    assert slots() is None


def test_generation_rules_and_attention_windows_are_not_supported(model, tmp_path):
    assert is_supported(model)
    model.generation_config.repetition_penalty = 1.3
    assert not is_supported(model)
    model.generation_config.repetition_penalty = None
    model.config.sliding_window = 64
    assert not is_supported(model)


def test_what_fails_in_continuous_batching_is_generated_in_padded_batches_and_reported(
    folder, model
):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    loaded = LoadedModel(model, tokenizer, HfEngine(), "cpu", answer_rows=2)
    prompts = ["One.", "Another one, longer.", "A third."]
    expected = generate(loaded, prompts, 9)

    def off(module, arguments, output):
        return output * 1.5 if output.shape[1] == 1 else output

    model.model.layers[0].self_attn.q_proj.register_forward_hook(off)
    loaded.model = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    with collect_fallbacks() as fallbacks:
        other = generate(loaded, prompts, 9)
    (fallback,) = fallbacks.sorted()
    assert fallback.code == "no-continuous-batching"
    assert "RuntimeError: decoding with KV cache slots is off by" in fallback.message
    assert len(other) == len(expected)
    # It is not tried again.
    assert loaded.batches_continuously[loaded.model] is False
    assert generate(loaded, prompts, 9) == other


def test_two_models_are_decoded_in_two_threads_without_mixing_their_caches(folder, model):
    other = AutoModelForCausalLM.from_pretrained(folder).eval()

    @torch.no_grad()
    def answer(one, prompts):
        return decode(one, prompts, LIMITS, {NEVER}, 2)

    backwards = [prompt[::-1] for prompt in PROMPTS]
    with ThreadPoolExecutor() as pool:
        running = [pool.submit(answer, model, PROMPTS), pool.submit(answer, other, backwards)]
        first, second = (one.result() for one in running)
    assert (first, second) == (answer(model, PROMPTS), answer(model, backwards))


def test_a_model_that_drops_keyword_arguments_is_refused_by_the_attention(model):
    with slot_attention(model), pytest.raises(RuntimeError, match="keyword arguments"):
        model(input_ids=torch.tensor([[5, 6]]))
