"""Finished runs of tiny models, each made once, for everything that is exported from them."""

import json

import pytest

from medcot.config.presets import make_config
from medcot.pipeline.run import run
from medcot.runs.directory import RunDirectory
from tests.support.fakes import make_case, make_small_tokenizer

SMALL = {
    "samples": 12,
    "steps": 4,
    "save_steps": 2,
    "batch": 2,
    "test_samples": 4,
    "generate_samples": 2,
    "max_new_tokens": 6,
    "learning_rate": 1e-2,
    "mcq": (),
}
CASES = [make_case(number) for number in range(40)]


def make_run(folder, model):
    rows = [
        {"Question": one.question, "Complex_CoT": one.thought, "Response": one.response}
        for one in CASES
    ]
    data = folder / "cases.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    directory = RunDirectory(folder / "exported")
    run(make_config("demo", SMALL | {"model": str(model), "dataset": str(data)}), directory)
    return directory


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("model") / "small"
    tokenizer = make_small_tokenizer(CASES)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=len(tokenizer), tie_word_embeddings=True,
        max_position_embeddings=2048, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def finished_run(small_model, tmp_path_factory):
    """A run whose tokenizer is quick to load, but not known to llama.cpp's converter."""
    return make_run(tmp_path_factory.mktemp("runs"), small_model)
