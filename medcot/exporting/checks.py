"""Finds what differs between an export and its run, without running the model.

Each finding is a message that names the thing. An export with a finding is broken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medcot.catalog import Message
from medcot.data.tokenization import encode_text
from medcot.errors import one_line
from medcot.exporting.proof_set import ProofSet
from medcot.exporting.run_model import RunModel, as_ids

SHOWN = 60
"""Characters of a value in a finding."""

UNRELATED = {
    "_name_or_path", "architectures", "bos_token_id", "chunk_size_feed_forward", "dtype",
    "eos_token_id", "id2label", "label2id", "pad_token_id", "quantization_config", "torch_dtype",
    "transformers_version", "use_cache",
}  # fmt: skip
"""Fields of a model's configuration that change with its storage, or are checked by themselves."""

NOT_MERGED = 0.05
"""Share of the adapter's product in a weight below which the adapter counts as not merged."""


def check_tokenizer(model: RunModel, folder: Path, asked: ProofSet) -> Iterator[Message]:
    """Compare the exported tokenizer with the run's: tokens, end token, chat template."""
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # noqa: BLE001 - damaged files raise whatever the damage suggests
        yield Message("proof_no_tokenizer", {"why": one_line(str(error), SHOWN)})
        return
    own = model.tokenizer
    if found.eos_token_id != own.eos_token_id:
        yield end_differs(found.eos_token, own.eos_token)
    if str(getattr(found, "chat_template", None) or "") != asked.template:
        yield Message("proof_template_differs")
    if found.bos_token_id != own.bos_token_id:
        yield setting_differs("bos_token", found.bos_token, own.bos_token)
    for row in asked.rows:
        ids = found(row.completion, add_special_tokens=False).input_ids
        expected = list(row.completion_ids[:-1])
        if ids != expected or encode_text(found, row.prompt) != list(row.prompt_ids):
            yield Message("proof_tokens_differ", {"row": row.id})
            return


def check_config(model: RunModel, folder: Path) -> Iterator[Message]:
    """Compare the exported model's configuration with the base model's, field by field."""
    from transformers import AutoConfig, GenerationConfig

    try:
        found = AutoConfig.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        ).to_dict()
    except Exception as error:  # noqa: BLE001 - as above
        yield Message("proof_not_loaded", {"why": one_line(str(error), SHOWN)})
        return
    settings, expected = _related(found), _related(model.base_config.to_dict())
    for name in sorted(set(settings) | set(expected)):
        if settings.get(name) != expected.get(name):
            yield setting_differs(f"config.json, {name}", settings.get(name), expected.get(name))
    try:
        generation = GenerationConfig.from_pretrained(str(folder), local_files_only=True)
        ends = set(as_ids(generation.eos_token_id))
    except OSError:
        ends = set(as_ids(found.get("eos_token_id")))
    if missing := sorted(set(model.end_ids) - ends):
        tokens = ", ".join(model.tokenizer.convert_ids_to_tokens(missing))
        yield Message("proof_end_not_named", {"token": tokens})


def _related(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration, and those of its parts, without the :data:`UNRELATED` fields."""
    return {
        name: _related(value) if isinstance(value, dict) else value
        for name, value in config.items()
        if name not in UNRELATED
    }


def check_adapter(model: RunModel, folder: Path) -> Iterator[Message]:
    """Compare the exported adapter's settings and weights with the run's."""
    import json

    from safetensors.torch import load_file

    try:
        found = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        weights = load_file(str(folder / "adapter_model.safetensors"))
    except Exception as error:  # noqa: BLE001 - as above
        yield Message("proof_not_loaded", {"why": one_line(str(error), SHOWN)})
        return
    for name in ("r", "lora_alpha", "use_rslora", "target_modules", "bias", "rank_pattern",
                 "alpha_pattern", "peft_type", "fan_in_fan_out", "use_dora"):  # fmt: skip
        mine, theirs = _plain(found.get(name)), _plain(model.adapter_config.get(name))
        if mine != theirs:
            yield setting_differs(f"adapter_config.json, {name}", mine, theirs)
    own = load_file(str(model.directory.adapter / "adapter_model.safetensors"))
    if gone := sorted(set(own) - set(weights)):
        yield Message("proof_weights_missing", {"n": len(gone), "name": gone[0]})
    for name in sorted(set(own) & set(weights)):
        if own[name].shape != weights[name].shape or not own[name].equal(weights[name]):
            yield Message("proof_weight_differs", {"name": name})
            return


def check_merged_weights(model: RunModel, folder: Path) -> Iterator[Message]:
    """Compare every merged weight with the base plus what training added.

    The share of the training that a weight holds is its projection on the adapter's product: 1
    where it is merged right, 0 where it is not merged, 2 where it is merged twice or scaled wrong.
    """
    from medcot.exporting.tensors import open_tensors

    base, merged = model.base_tensors(), open_tensors(folder)
    if gone := sorted(set(base.names) - set(merged.names) - base.tied):
        yield Message("proof_weights_missing", {"n": len(gone), "name": gone[0]})
    deltas = model.deltas()
    for name in base.names:
        if name not in merged.names:
            continue
        before, after = base.read(name), merged.read(name)
        if before.shape != after.shape:
            yield Message("proof_weight_differs", {"name": name})
            continue
        if (found := _compare_weight(name, before, after, deltas.get(name))) is not None:
            yield found


def _compare_weight(name: str, before: Any, after: Any, delta: Any) -> Message | None:
    import torch

    # The base, the product and their sum are each rounded to 16 bits, even where they are stored in
    # more.
    eps = max(torch.finfo(one).eps for one in (after.dtype, torch.float16))
    before, after = before.float(), after.float()
    if not after.isfinite().all():
        return Message("proof_not_finite", {"name": name})
    added = delta() if delta is not None else torch.zeros_like(before)
    slack = eps * (before.abs() + added.abs()) + torch.finfo(torch.float16).tiny
    if not ((after - before - added).abs() > slack).any():
        return None
    power = float((added * added).sum())
    if power > 0:
        share = float(((after - before) * added).sum()) / power
        rest = (after - before - share * added).abs() > slack + eps * added.abs()
        if not rest.any():
            code = "proof_not_merged" if abs(share) < NOT_MERGED else "proof_scaled"
            return Message(code, {"name": name, "share": round(share, 2)})
    return Message("proof_weight_differs", {"name": name})


def shorten(text: str) -> str:
    """Return ``text`` on one line, cut to what a finding shows."""
    return one_line(text, 2 * SHOWN)


def setting_differs(name: str, found: object, expected: object) -> Message:
    """Return the finding that a setting has another value than in the run."""
    shown = {"found": one_line(repr(found), SHOWN), "expected": one_line(repr(expected), SHOWN)}
    return Message("proof_setting_differs", {"name": name, **shown})


def end_differs(found: object, expected: object) -> Message:
    """Return the finding that the end token is missing, or another one."""
    values = {"found": one_line(str(found), SHOWN), "expected": one_line(str(expected), SHOWN)}
    return Message("proof_end_differs", values)


def _plain(value: Any) -> Any:
    """Return a value of an adapter's config that does not depend on order or on None."""
    if isinstance(value, list):
        return sorted(map(str, value))
    return value or None
