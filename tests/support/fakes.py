"""Small real parts for the tests: models of a few thousand weights, cases, callables."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from medcot.engines.bundled_model import bundled_model
from medcot.records import Case

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCABULARY = 4096
"""Tokens of a tiny model: with all 49,152 of the bundled one, the output head would take most of a
test's time. Texts become 1.4 times as many tokens."""


def make_tiny_model(
    folder: Path,
    *,
    family: str = "llama",
    seed: int = 0,
    vocabulary: int = VOCABULARY,
    **changes: object,
) -> Path:
    """A model of two thin layers with random weights and a part of the bundled tokenizer."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer

    _copy_tokenizer(bundled_model(), folder, vocabulary)
    tokenizer = AutoTokenizer.from_pretrained(folder)
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
    config = CONFIG_MAPPING[family](**(shape | changes))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def _copy_tokenizer(source: Path, folder: Path, vocabulary: int) -> None:
    """Copy a tokenizer with its first tokens only: ids follow the order of the merges."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((source / name).read_bytes())
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    model = tokenizer["model"]
    known = {token: at for token, at in model["vocab"].items() if at < vocabulary}
    merges = [pair for pair in model["merges"] if {*pair, "".join(pair)} <= known.keys()]
    model |= {"vocab": known, "merges": merges}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")


def make_talker(
    folder: Path,
    words: list[str],
    *,
    special: list[str] | None = None,
    ends: list[str] | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> Path:
    """A model that says ``words``, one token each, and then its end, after any prompt.

    Each word's embedding points along an axis of its own, the layers add nothing, and the output
    head turns that axis into the next word. ``special`` words become special tokens; ``ends`` are
    the end tokens that its generation config names. ``tokenizer`` is the bundled one by default.
    """
    import torch
    from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokenizer = tokenizer or AutoTokenizer.from_pretrained(bundled_model())
    tokenizer.add_tokens([word for word in words if word.startswith("<")])
    if special:
        tokenizer.add_special_tokens({"additional_special_tokens": special})
    said = [*words, tokenizer.eos_token]
    ids = [tokenizer.encode(word, add_special_tokens=False)[-1] for word in said]
    width = 32
    assert len(set(ids)) == len(ids) < width
    config = LlamaConfig(
        hidden_size=width, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=len(tokenizer), tie_word_embeddings=False,
        max_position_embeddings=2048, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
        embedding.zero_()
        head.zero_()
        embedding[:, 0] = 1.0  # Any other token, so the prompt's last one: the first word is next.
        head[ids[0], 0] = 9.0
        for axis, (word, following) in enumerate(pairwise(ids), 1):
            embedding[word, 0], embedding[word, axis] = 0.0, 1.0
            head[following, axis] = 9.0
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.convert_tokens_to_ids(end) for end in ends or [tokenizer.eos_token]]
    )
    model.save_pretrained(folder)
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


SMALL_TEMPLATE = (
    "{% for turn in messages %}<|im_start|>{{ turn['role'] }}\n{{ turn['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_small_tokenizer(cases: list[Case]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 600 tokens: it loads in milliseconds, that of SmolLM2 in a second."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    level = pre_tokenizers.ByteLevel
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = level(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=level.alphabet(),
        show_progress=False,
    )  # fmt: skip
    texts = [f"{one.question} {one.thought} {one.response}" for one in cases]
    tokenizer.train_from_iterator(texts, trainer)
    found = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=special[0], bos_token=special[1],
        eos_token=special[2],
    )  # fmt: skip
    found.chat_template = SMALL_TEMPLATE
    return found
