"""What an export is made from: the base model as the run used it, the adapter, the tokenizer."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from medcot.catalog import Message
from medcot.config.schema import RunConfig
from medcot.engines import loading as models
from medcot.engines.base import Location, settle_pad_token
from medcot.errors import InputError
from medcot.exporting.tensors import Tensors, open_tensors, tensors_of
from medcot.runs.directory import RunDirectory

QUANTIZED = ("4bit", "8bit")
"""Precisions of a base whose weights bitsandbytes packs."""


@dataclass(frozen=True)
class RunModel:
    """A finished run's model, before anything of it is loaded."""

    directory: RunDirectory
    config: RunConfig
    plan: Mapping[str, Any]

    @classmethod
    def of(cls, directory: RunDirectory) -> RunModel:
        """Read what the run wrote down about its model.

        Raises:
            InputError: The run is not trained, or its adapter is incomplete.
        """
        config = directory.config()
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            if not (directory.adapter / name).exists():
                got = f"no adapter/{name} in it"
                raise InputError(f"--run {directory.path}", got, "train the run first")
        return cls(directory, config, directory.read_json("plan.json"))

    @cached_property
    def location(self) -> Location:
        """Where the base model is."""
        return models.locate(self.config.model, self.config.model_revision)

    @property
    def quantization(self) -> str:
        """Return the precision of the base in the run: ``none``, ``fp8``, ``8bit`` or ``4bit``."""
        return str(self.plan.get("quantization", "none"))

    @property
    def is_quantized(self) -> bool:
        """Return whether the run's base was packed into 4 or 8 bits."""
        return self.quantization in QUANTIZED

    @property
    def dequantized(self) -> Message:
        """Return the sentence that a merge of this run's base is told with."""
        return Message("export_dequantized", {"bits": self.quantization[0]})

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer that the run trained and scored with."""
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(
                str(self.directory.adapter), trust_remote_code=False
            )
        except (OSError, ValueError, KeyError) as error:
            where, got = (
                str(self.directory.adapter),
                f"no usable tokenizer ({type(error).__name__})",
            )
            raise InputError(where, got, "restore the files that training saved") from error
        settle_pad_token(tokenizer)
        return tokenizer

    @property
    def added_start(self) -> str:
        """Return the start token if the tokenizer adds it to every text, else an empty string.

        A prompt that spells it too would have it twice.
        """
        tokenizer = self.tokenizer
        first = tokenizer("x").input_ids[:1]
        return str(tokenizer.bos_token) if first == [tokenizer.bos_token_id] else ""

    @cached_property
    def base_config(self) -> Any:
        """The configuration of the base model."""
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self.location.source, **self.location.options)

    @property
    def text_config(self) -> Any:
        """Return the part of the configuration that is about text: all of it for most models."""
        return self.base_config.get_text_config()

    @cached_property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that ended an answer in the run: the tokenizer's and the base model's own."""
        found = {self.tokenizer.eos_token_id, *as_ids(self.base_config.eos_token_id)}
        if (generation := self.base_generation_config) is not None:
            found |= set(as_ids(generation.eos_token_id))
        return tuple(sorted(one for one in found if one is not None))

    @cached_property
    def base_generation_config(self) -> Any:
        """The generation settings of the base model, None where it has none."""
        from transformers import GenerationConfig

        try:
            return GenerationConfig.from_pretrained(self.location.source, **self.location.options)
        except OSError:
            return None

    @cached_property
    def adapter_config(self) -> dict[str, Any]:
        """The adapter's configuration, as peft saved it."""
        path = self.directory.adapter / "adapter_config.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise InputError(str(path), "not valid JSON", "restore the file") from None

    @cached_property
    def adapter_digest(self) -> str:
        """The SHA-256 of the adapter's configuration and weights."""
        digest = hashlib.sha256()
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            with (self.directory.adapter / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    @property
    def scale(self) -> float:
        """Return what the adapter's product is multiplied with: alpha / rank."""
        rank, alpha = self.adapter_config["r"], self.adapter_config["lora_alpha"]
        return alpha / rank**0.5 if self.adapter_config.get("use_rslora") else alpha / rank

    def deltas(self) -> dict[str, Callable[[], Any]]:
        """Return, by adapted weight, a function that computes what training added to it."""
        from safetensors.torch import load_file

        tensors = load_file(str(self.directory.adapter / "adapter_model.safetensors"))

        turned = bool(self.adapter_config.get("fan_in_fan_out"))

        def delta(key: str) -> Any:
            down, up = tensors[key], tensors[key.replace(".lora_A.", ".lora_B.")]
            product = self.scale * (up.float() @ down.float())
            return product.T if turned else product

        adapted = [key for key in tensors if ".lora_A." in key]
        return {weight_name(key): partial(delta, key) for key in adapted}

    def base_tensors(self) -> Tensors:
        """Return the base model's weights as the run used them, to be read one at a time."""
        import torch

        tied = frozenset({"lm_head.weight"} if self.base_config.tie_word_embeddings else ())
        folder = Path(self.location.source)
        if self.is_quantized or not folder.is_dir():
            state = self.load_base(torch.float32 if not self.is_quantized else torch.float16)
            return tensors_of(state.state_dict(), tied=tied)
        return open_tensors(folder, tied=tied)

    def load_base(self, dtype: Any, *, device: str = "cpu", packed: bool = False) -> Any:
        """Load the base model by transformers.

        Args:
            packed: Keep weights that the run used in 4 or 8 bits as they were. Otherwise they are
                de-quantised, so that the values are those of the run and not of the original.

        Raises:
            InputError: bitsandbytes is needed and not installed.
        """
        from transformers import AutoModelForCausalLM

        options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True}
        if self.is_quantized:
            options["quantization_config"] = self._bitsandbytes(dtype)
        if device != "cpu":
            options["device_map"] = {"": device}
        model = AutoModelForCausalLM.from_pretrained(
            self.location.source, **self.location.options, **options
        )
        if self.is_quantized and not packed:
            model = model.dequantize()
        return model.eval()

    def _bitsandbytes(self, dtype: Any) -> Any:
        from importlib.util import find_spec

        from transformers import BitsAndBytesConfig

        if find_spec("bitsandbytes") is None:
            raise InputError(
                f"--run {self.directory.path}",
                f"the base of this run was in {self.quantization[0]} bits",
                "install bitsandbytes, which unpacks it: pip install 'medcot[gpu]'",
            )
        if self.quantization == "8bit":
            return BitsAndBytesConfig(load_in_8bit=True)
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )


def weight_name(key: str) -> str:
    """Return the base model's name for the weight that an adapter's tensor belongs to."""
    plain = key.removeprefix("base_model.model.")
    return re.sub(r"\.lora_[AB](\.\w+)?\.weight$", ".weight", plain)


def as_ids(value: Any) -> list[int]:
    """Return the ids of a setting that names one token, several or none."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
