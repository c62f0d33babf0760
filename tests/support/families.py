"""Tiny random models of many families, made from their configs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.fakes import make_case, make_small_tokenizer
from tests.support.short_runs import SHORT, write_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from medcot.runs.directory import RunDirectory

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1024,
}
WINDOW: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention"]}
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {},
    "qwen3_5_text": {
        "layer_types": ["linear_attention", "full_attention"],
        "linear_key_head_dim": 8, "linear_value_head_dim": 8,
        "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    },
    "gemma3_text": WINDOW | {"sliding_window": 16, "query_pre_attn_scalar": 8},
    "phi3": {"sliding_window": 16},
    "gpt_oss": WINDOW | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16},
    "glm4": {"attention_bias": True},
    "granite": {
        "embedding_multiplier": 6.0, "attention_multiplier": 0.2, "residual_multiplier": 0.3,
        "logits_scaling": 4.0,
    },
    "olmo2": {},
    "smollm3": {"no_rope_layers": [1, 0]},
    # Beyond the list: a softcapped head, experts of another make, and a tower beside the text.
    "gemma2": WINDOW | {"sliding_window": 16, "query_pre_attn_scalar": 8},
    "qwen3_moe": EXPERTS | {"num_experts": 4},
    "gpt2": {},
    "gemma3": {},
}  # fmt: skip
"""What makes a family's layers its own, by ``model_type``."""


def family_config(family: str, vocabulary: int, **special: int) -> Any:
    """The config of a model with two thin layers."""
    from transformers import CONFIG_MAPPING

    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0} | special
    sizes = SIZES | FAMILIES[family] | special | {"vocab_size": vocabulary}
    if family == "gpt2":
        names = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 1024}
        return CONFIG_MAPPING[family](**names, **special, vocab_size=vocabulary)
    if family == "gemma3":
        text = SIZES | FAMILIES["gemma3_text"] | special | {"vocab_size": vocabulary}
        tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
                 "num_attention_heads": 2, "image_size": 28, "patch_size": 14}  # fmt: skip
        return CONFIG_MAPPING[family](
            text_config=text, vision_config=tower, mm_tokens_per_image=4,
            image_token_index=5, boi_token_index=6, eoi_token_index=7, **special,
        )  # fmt: skip
    return CONFIG_MAPPING[family](**sizes)


def make_family_model(folder: Path, family: str, template: str | None = None) -> Path:
    """A model of ``family`` with random weights and a tokenizer of 600 tokens, as a local folder.

    ``template`` replaces the plain chat template; an empty one leaves none.
    """
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer: PreTrainedTokenizerFast = make_small_tokenizer([make_case(n) for n in range(12)])
    if template is not None:
        tokenizer.chat_template = template or None
    torch.manual_seed(0)
    config = family_config(
        family, len(tokenizer), bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Followed:
    """What became of a family: trainable parameters, and losses per completion token.

    Attributes:
        planned, trained, by_peft: Trainable parameters: the plan's, the training's, and those of
            the adapter that plain peft loads.
        parameters: All parameters, as planned.
        first_loss, first_by_peft: Of all training rows before the first step.
        before, after, after_by_peft: Of the test rows.
        answer_tokens: Of an answer to one question, of 3 that were allowed.
        merged: The verdict on the merged export.
    """

    planned: int
    trained: int
    by_peft: int
    parameters: int
    first_loss: float
    first_by_peft: float
    before: float
    after: float
    after_by_peft: float
    answer_tokens: int
    merged: str


def follow_family(
    folder: Path, family: str, *, engine: str = "auto", merges: bool = True
) -> Followed:
    """Train a tiny model of ``family`` for two steps, load it by plain peft, ask it, export it."""
    from medcot.config.presets import make_config
    from medcot.inference.ask import ask
    from medcot.pipeline.run import run
    from medcot.runs.directory import RunDirectory

    model = make_family_model(folder / "model", family)
    data = write_rows(folder / "rows.jsonl")
    # A step sees all rows, so that its loss is that of all of them.
    changes = {"model": str(model), "dataset": str(data), "steps": 2, "batch": SHORT["samples"]}
    changes["engine"] = engine
    directory = RunDirectory(folder / "run")
    report = run(make_config("demo", SHORT | changes), directory)
    plain = _load_plainly(directory, model)
    with plain.disable_adapter():
        first = _mean_loss(plain, directory, "train")
    *_, last = ask(directory, "Why?", max_new_tokens=3)
    merged = _merge(directory) if merges else "not asked for"
    return Followed(
        planned=directory.read_json("plan.json")["trainable_parameters"],
        trained=directory.read_json("training.json")["trainable_parameters"],
        by_peft=plain.get_nb_trainable_parameters()[0],
        parameters=directory.read_json("plan.json")["total_parameters"],
        first_loss=next(iter(directory.rows(directory.events)))["loss"],
        first_by_peft=first,
        before=report.before.nll,
        after=report.after.nll,
        after_by_peft=_mean_loss(plain, directory, "test"),
        answer_tokens=last.tokens,
        merged=merged,
    )


def _merge(directory: RunDirectory) -> str:
    """Return the outcome of the merged export, or what was wrong with it."""
    from medcot.errors import RunFailed
    from medcot.exporting.workflow import ExportOptions, export_run

    try:
        return export_run(directory, ExportOptions(("merged",), answers=1))[0].outcome
    except RunFailed as error:
        return str(error)


def _load_plainly(directory: RunDirectory, model: Path) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model)
    return PeftModel.from_pretrained(base, str(directory.adapter), is_trainable=True).eval()


def _mean_loss(model: Any, directory: RunDirectory, part: str) -> float:
    """Compute the loss per completion token by the model's own forward pass, row by row."""
    import torch
    from transformers import AutoTokenizer

    from medcot.data.dataset import load_dataset
    from medcot.data.prompts import render
    from medcot.data.tokenization import chat_template, encode

    config = directory.config()
    tokenizer = AutoTokenizer.from_pretrained(directory.adapter)
    cases = {case.id: case for case in load_dataset(config).cases}
    chat = chat_template(tokenizer)
    names = directory.read_json("split.json")[part]
    names = names[: config.samples if part == "train" else config.test_samples]
    total = tokens = 0.0
    for row in encode(tokenizer, {name: render(cases[name], "chat", chat) for name in names}):
        ids = torch.tensor([row.prompt_ids + row.completion_ids])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0].float()
        count = len(row.completion_ids)
        found = torch.nn.functional.cross_entropy(
            logits[-count - 1 : -1], ids[0, -count:], reduction="sum"
        )
        total, tokens = total + found.item(), tokens + count
    return total / tokens
