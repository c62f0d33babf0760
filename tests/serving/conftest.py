"""A run whose tuned model says something known, and the same with another word than its base."""

import pytest

from medcot.config.presets import make_config
from medcot.runs.directory import RunDirectory
from tests.support.fakes import make_case, make_small_tokenizer, make_talker

WORDS = ["A", " cough", " and", " fever", "</think>", " Flu", " or", " cold", "."]
"""What the base says; the adapter lets a full stop follow the first word of the answer."""
THOUGHT, BASE_ANSWER, TUNED_ANSWER = "A cough and fever", "Flu or cold.", "Flu."


def make_served_run(folder):
    """A run that is trained, as far as serving can tell."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    tokenizer = make_small_tokenizer([make_case(number) for number in range(4)])
    tokenizer.add_tokens(WORDS)
    model = make_talker(folder / "model", WORDS, tokenizer=tokenizer)
    directory = RunDirectory(folder / "runs" / "flu")
    directory.create(
        make_config("demo", {"model": str(model), "max_new_tokens": 24, "rank": 16, "mcq": ()})
    )
    tuned = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model),
        LoraConfig(r=1, lora_alpha=1, target_modules=["lm_head"], task_type="CAUSAL_LM"),
    )
    axis = WORDS.index(" Flu") + 1
    with torch.no_grad():
        layer = tuned.base_model.model.lm_head
        layer.lora_A["default"].weight.zero_()[0, axis] = 1.0
        full_stop = tokenizer.encode(".", add_special_tokens=False)[-1]
        layer.lora_B["default"].weight.zero_()[full_stop, 0] = 20.0
    tuned.save_pretrained(directory.adapter, save_embedding_layers=False)
    tokenizer.save_pretrained(directory.adapter)
    return directory


@pytest.fixture(scope="package")
def served_run(tmp_path_factory):
    return make_served_run(tmp_path_factory.mktemp("serving"))
