"""Makes the folders of an adapter and of a merged model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from medcot.config.schema import BUNDLED_MODEL
from medcot.data.snapshots import find_snapshot
from medcot.errors import InputError, one_line
from medcot.exporting.run_model import RunModel

ADAPTER_FILES = ("adapter_model.safetensors",)


def make_adapter(model: RunModel, folder: Path) -> None:
    """Write the adapter as peft expects it, with its tokenizer; weights are copied, not saved."""
    for name in ADAPTER_FILES:
        shutil.copyfile(model.directory.adapter / name, folder / name)
    config = dict(model.adapter_config)
    # The bundled model and a base in a folder are named, not located: paths of this machine mean
    # nothing elsewhere.
    config["base_model_name_or_path"] = base_name(model)
    config["revision"] = model.location.recorded
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    save_tokenizer(model.tokenizer, folder)


def make_merged(model: RunModel, folder: Path) -> None:
    """Merge the adapter into the base in 16 bits and save it as safetensors.

    Raises:
        InputError: The adapter does not fit the base.
    """
    from peft import PeftModel

    dtype = merged_dtype(model)
    base = model.load_base(dtype)
    try:
        merged = PeftModel.from_pretrained(base, str(model.directory.adapter))
        merged = merged.merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError, KeyError) as error:
        needs = "expected an adapter of this model with finite weights"
        raise InputError(str(model.directory.adapter), one_line(str(error)), needs) from error
    merged.config.__dict__.pop("quantization_config", None)
    _settle_generation(model, merged)
    merged.save_pretrained(str(folder), safe_serialization=True)
    save_tokenizer(model.tokenizer, folder)


def merged_dtype(model: RunModel) -> Any:
    """Return the 16-bit type of a merged model: the checkpoint's own, else float16.

    float16 keeps three more bits of each weight than bfloat16, and weights fit its range.
    """
    import torch

    own = getattr(model.base_config, "dtype", None)
    return own if own in (torch.bfloat16, torch.float16) else torch.float16


def _settle_generation(model: RunModel, merged: Any) -> None:
    """Name every token that ended an answer in the run, and generate greedily, as the run did."""
    settings = merged.generation_config
    ends = list(model.end_ids)
    settings.eos_token_id = ends if len(ends) > 1 else ends[0]
    settings.pad_token_id = model.tokenizer.pad_token_id
    settings.do_sample = False
    for name in ("temperature", "top_p", "top_k"):
        setattr(settings, name, None)


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Save the tokenizer with its chat template, readable for llama.cpp's converter as well."""
    tokenizer.save_pretrained(str(folder))
    path = folder / "tokenizer.json"
    if not path.exists():
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    if mend_byte_level(found):
        path.write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")


def mend_byte_level(tokenizer: dict[str, Any]) -> bool:
    """Correct a byte-level BPE that is marked as if it were SentencePiece's; return whether it was.

    transformers' GGUF reader adds SentencePiece's byte fallback and decoder to byte-level
    vocabularies. Neither changes a token, as every byte is in the vocabulary, but llama.cpp's
    converter takes the mark at its word and writes a vocabulary that it cannot use.
    """
    before = tokenizer.get("pre_tokenizer") or {}
    kinds = {before.get("type"), *(one.get("type") for one in before.get("pretokenizers", []))}
    model = tokenizer["model"]
    if model.get("type") != "BPE" or "ByteLevel" not in kinds or not model.get("byte_fallback"):
        return False
    model["byte_fallback"] = False
    steps = (tokenizer.get("decoder") or {}).get("decoders", [])
    own = next((one for one in steps if one["type"] == "ByteLevel"), None)
    if own is not None:
        tokenizer["decoder"] = own
    return True


def base_name(model: RunModel) -> str:
    """Return the name under which others find the base: never a path of this machine."""
    name = model.config.model
    if name == BUNDLED_MODEL or not Path(name).exists():
        return name
    snapshot = find_snapshot(name)
    return snapshot.repository if snapshot else Path(name).resolve().name
