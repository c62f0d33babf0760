"""Small real parts for the tests: models of a few thousand weights, cases, callables."""

from __future__ import annotations

from pathlib import Path

from medcot.engines.bundled_model import bundled_model
from medcot.records import Case


def make_tiny_model(folder: Path, *, seed: int = 0, **changes: object) -> Path:
    """A Llama of two thin layers with random weights and the bundled model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(bundled_model())
    torch.manual_seed(seed)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": len(tokenizer),
        "tie_word_embeddings": True,
        "max_position_embeddings": 2048,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    LlamaForCausalLM(LlamaConfig(**(shape | changes))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_case(number: int, **changes: object) -> Case:
    """A short valid case, different for every number."""
    values: dict[str, object] = {
        "id": f"case-{number}",
        "question": f"Patient {number} has fever and a cough. What is the likely cause?",
        "thought": f"Fever and cough in patient {number}.\n\nSo an infection of the airways.",
        "response": f"Most likely infection number {number}.",
    }
    return Case(**(values | changes))  # type: ignore[arg-type]
