"""Finds the layer sizes of a model, which count its parameters exactly without loading it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from medcot.catalog import Message
from medcot.config.schema import BUNDLED_MODEL, TARGET_MODULES, RunConfig, read_target_modules
from medcot.credentials import hub_token
from medcot.data.connection import check_connection
from medcot.data.snapshots import find_snapshot
from medcot.errors import InputError, one_line
from medcot.network import limit_hub_requests
from medcot.paths import is_folder
from medcot.planning.architecture import count_architecture

StoredWeights = Literal["none", "4bit", "8bit"]
"""How a repository holds its linear layers; "4bit" and "8bit" are bitsandbytes'."""

MEMORY_MARGIN = 1.4
"""Activations and logits of a counted model are planned with so many times what its sizes make. Set
by hand: no such model was measured."""
TIME_MARGIN = 1.5
"""The same for the time of a step and of an evaluation."""


@dataclass(frozen=True)
class ModelSpec:
    """A Llama-like decoder: RMS norms, grouped attention, gated feed-forward.

    The biases are those of the linear layers; ``qk_norm`` is a norm over each head (Qwen3).
    ``context`` is the longest sequence in tokens, 0 where it is not known. ``targets`` are the
    linear layers that get LoRA, by the last part of their names. ``stored`` is how the repository
    holds their weights, "none" for 16 or 32 bits. ``activation`` is the function that gates the
    feed-forward network; ``attention_dropout`` tells that training drops attention weights.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied_embeddings: bool
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    context: int = 0
    targets: tuple[str, ...] = TARGET_MODULES
    stored: StoredWeights = "none"
    activation: str = "silu"
    attention_dropout: bool = False

    @property
    def linear_sizes(self) -> dict[str, tuple[int, int]]:
        """Return the (input, output) widths of each linear layer of one block."""
        wide, narrow = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (self.hidden, wide),
            "k_proj": (self.hidden, narrow),
            "v_proj": (self.hidden, narrow),
            "o_proj": (wide, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def lora_widths(self) -> Mapping[str, int]:
        """Return by name input plus output width, summed over all layers of that name."""
        return {name: self.layers * sum(sizes) for name, sizes in self.linear_sizes.items()}

    @property
    def memory_margin(self) -> float:
        """Return by what the predicted activations and logits are multiplied."""
        return 1.0

    @property
    def time_margin(self) -> float:
        """Return by what predicted times are multiplied."""
        return 1.0

    @property
    def linear_parameters(self) -> int:
        """Count the weights of all blocks' linear layers, which quantisation shrinks."""
        return self.layers * sum(a * b for a, b in self.linear_sizes.values())

    @property
    def head_parameters(self) -> int:
        """Count the weights of the output head; tied embeddings share them."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """Count all parameters, shared ones once."""
        embeddings = self.head_parameters * (1 if self.tied_embeddings else 2)
        norms = self.hidden * (2 * self.layers + 1)
        return self.linear_parameters + embeddings + norms + self.layers * self._block_extras

    @property
    def computed_parameters(self) -> int:
        """Count the weights that each token is multiplied with: blocks and head."""
        return self.linear_parameters + self.head_parameters

    @property
    def _block_extras(self) -> int:
        sizes = self.linear_sizes
        biases = 0
        if self.qkv_bias:
            biases += sum(sizes[name][1] for name in ("q_proj", "k_proj", "v_proj"))
        if self.o_bias:
            biases += sizes["o_proj"][1]
        if self.mlp_bias:
            biases += sum(sizes[name][1] for name in ("gate_proj", "up_proj", "down_proj"))
        return biases + (2 * self.head_dim if self.qk_norm else 0)

    def lora_parameters(self, rank: int) -> int:
        """Count the LoRA parameters: ``rank`` * (input + output) for each of the ``targets``."""
        widths = self.lora_widths
        return rank * sum(widths[name] for name in self.targets)


@dataclass(frozen=True, kw_only=True)
class CountedSpec(ModelSpec):
    """A model of any family, counted by :func:`medcot.planning.architecture.count_architecture`.

    Attributes:
        family: Its ``model_type``.
        total: All parameters, shared ones once.
        quantizable: Weights of linear layers, which quantisation shrinks; stacked experts are not
            among them.
        multiplied: Weights that each token is multiplied with: of experts, those that read it.
        linears: Of the text part's linear layers, by name: input and output width of the largest,
            and the sum of all their widths.
        experts: Experts of a layer, 0 where there are none.
        towers: Parts that read no text, such as ``vision_tower``.
        attention: What transformers offers for it: ``sdpa`` or ``eager``.
    """

    family: str
    total: int
    quantizable: int
    multiplied: int
    linears: Mapping[str, tuple[int, int, int]]
    experts: int
    towers: tuple[str, ...]
    attention: str

    @property
    def linear_sizes(self) -> dict[str, tuple[int, int]]:
        """Return the (input, output) widths of the largest linear layer of each name."""
        return {name: (inner, outer) for name, (inner, outer, _) in self.linears.items()}

    @property
    def lora_widths(self) -> Mapping[str, int]:
        """Return by name input plus output width, summed over all layers of that name."""
        return {name: widths for name, (_, _, widths) in self.linears.items()}

    @property
    def memory_margin(self) -> float:
        """Return by what the predicted activations and logits are multiplied."""
        return MEMORY_MARGIN

    @property
    def time_margin(self) -> float:
        """Return by what predicted times are multiplied."""
        return TIME_MARGIN

    @property
    def linear_parameters(self) -> int:
        """Count the weights of linear layers, which quantisation shrinks."""
        return self.quantizable

    @property
    def parameters(self) -> int:
        """Count all parameters, shared ones once."""
        return self.total

    @property
    def computed_parameters(self) -> int:
        """Count the weights that each token is multiplied with: blocks and head."""
        return self.multiplied


SMOLLM2_135M = ModelSpec(576, 1536, 30, 9, 3, 64, 49152, tied_embeddings=True, context=8192)
_LLAMA_8B = ModelSpec(4096, 14336, 32, 32, 8, 128, 128256, tied_embeddings=False)
_QWEN_7B = ModelSpec(3584, 18944, 28, 28, 4, 128, 152064, tied_embeddings=False, qkv_bias=True)
_QWEN_14B = ModelSpec(5120, 13824, 48, 40, 8, 128, 152064, tied_embeddings=False, qkv_bias=True)
_QWEN_1_5B = ModelSpec(1536, 8960, 28, 12, 2, 128, 151936, tied_embeddings=True, qkv_bias=True)

_KNOWN = {
    "smollm2-135m": SMOLLM2_135M,
    "smollm2-360m": ModelSpec(960, 2560, 32, 15, 5, 64, 49152, tied_embeddings=True),
    "smollm2-1.7b": ModelSpec(2048, 8192, 24, 32, 32, 64, 49152, tied_embeddings=True),
    "deepseek-r1-distill-llama-8b": _LLAMA_8B,
    "llama-3.1-8b": _LLAMA_8B,
    "meta-llama-3.1-8b": _LLAMA_8B,
    "llama-3-8b": _LLAMA_8B,
    "meta-llama-3-8b": _LLAMA_8B,
    "llama-3.2-1b": ModelSpec(2048, 8192, 16, 32, 8, 64, 128256, tied_embeddings=True),
    "llama-3.2-3b": ModelSpec(3072, 8192, 28, 24, 8, 128, 128256, tied_embeddings=True),
    # The distilled 1.5B is made from Qwen2.5-Math, and unties the head.
    "deepseek-r1-distill-qwen-1.5b": ModelSpec(
        1536, 8960, 28, 12, 2, 128, 151936, tied_embeddings=False, qkv_bias=True
    ),
    "deepseek-r1-distill-qwen-7b": _QWEN_7B,
    "deepseek-r1-distill-qwen-14b": _QWEN_14B,
    "qwen2.5-0.5b": ModelSpec(
        896, 4864, 24, 14, 2, 64, 151936, tied_embeddings=True, qkv_bias=True
    ),
    "qwen2.5-1.5b": _QWEN_1_5B,
    "qwen2.5-3b": ModelSpec(
        2048, 11008, 36, 16, 2, 128, 151936, tied_embeddings=True, qkv_bias=True
    ),
    "qwen2.5-7b": _QWEN_7B,
    "qwen2.5-14b": _QWEN_14B,
    "qwen3-0.6b": ModelSpec(1024, 3072, 28, 16, 8, 128, 151936, tied_embeddings=True, qk_norm=True),
    "qwen3-1.7b": ModelSpec(2048, 6144, 28, 16, 8, 128, 151936, tied_embeddings=True, qk_norm=True),
    "qwen3-4b": ModelSpec(2560, 9728, 36, 32, 8, 128, 151936, tied_embeddings=True, qk_norm=True),
    "qwen3-8b": ModelSpec(4096, 12288, 36, 32, 8, 128, 151936, tied_embeddings=False, qk_norm=True),
    "qwen3-14b": ModelSpec(
        5120, 17408, 40, 40, 8, 128, 151936, tied_embeddings=False, qk_norm=True
    ),
}
"""Published specs by hub name without owner and suffix, so that planning needs no network."""

_SUFFIXES = ("-bnb-4bit", "-unsloth", "-instruct", "-base", "-chat", "-math")


def find_model_spec(config: RunConfig) -> ModelSpec:
    """Find the spec of ``config.model``: bundled, in a local folder, in the table, or on the hub.

    Raises:
        InputError: a folder without a readable config.json, an unknown model that the hub cannot
            be asked about, one that is no causal language model, or ``config.target_modules``
            names a layer that it does not have.
    """
    if config.model == BUNDLED_MODEL:
        spec = SMOLLM2_135M
    elif is_folder(config.model):
        snapshot = find_snapshot(config.model)
        spec = _read_file((snapshot.folder if snapshot else Path(config.model)) / "config.json")
    else:
        known = look_up_model_spec(config.model)
        spec = known if known is not None else _fetch_from_hub(config)
    return _choose_targets(config, spec)


def _choose_targets(config: RunConfig, spec: ModelSpec) -> ModelSpec:
    asked = read_target_modules(config.target_modules)
    if not asked:
        return spec
    for name in asked:
        if name not in spec.linear_sizes:
            got = f"{config.model} has no linear layer {name!r} in its text part"
            needs = f"choose from {', '.join(spec.linear_sizes)}"
            raise InputError(f"--target-modules {config.target_modules}", got, needs)
    return replace(spec, targets=asked)


def look_up_model_spec(model: str) -> ModelSpec | None:
    """Look up a hub name such as ``unsloth/Qwen2.5-7B-Instruct-bnb-4bit`` in the table."""
    name = model.rpartition("/")[2].lower()
    stored: StoredWeights = "4bit" if name.endswith("-bnb-4bit") else "none"
    while suffix := next((s for s in _SUFFIXES if name.endswith(s)), None):
        name = name.removesuffix(suffix)
    spec = _KNOWN.get(name)
    return None if spec is None else replace(spec, stored=stored)


def read_model_spec(values: Mapping[str, Any], where: str) -> ModelSpec:
    """Read the spec that a transformers ``config.json`` describes.

    Llama, Mistral, Qwen2 and Qwen3 are counted here, without torch. Any other model is built and
    counted by transformers.

    Raises:
        InputError: ``where`` lacks a size, or is no causal language model.
    """
    family, stored = str(values.get("model_type", "")), _read_stored(values, where)
    if family not in ("llama", "mistral", "qwen2", "qwen3"):
        counted = count_architecture(values, where)
        towers, names = tuple(counted.pop("towers")), tuple(counted["linears"])
        return CountedSpec(**counted, towers=towers, targets=names, stored=stored)
    hidden, heads = _size(values, "hidden_size", where), _size(values, "num_attention_heads", where)
    biased = bool(values.get("attention_bias", False))
    return ModelSpec(
        hidden=hidden,
        intermediate=_size(values, "intermediate_size", where),
        layers=_size(values, "num_hidden_layers", where),
        heads=heads,
        kv_heads=_size(values, "num_key_value_heads", where, heads),
        head_dim=_size(values, "head_dim", where, 128 if family == "qwen3" else hidden // heads),
        vocab=_size(values, "vocab_size", where),
        tied_embeddings=bool(values.get("tie_word_embeddings", False)),
        qkv_bias=biased or family == "qwen2",
        o_bias=biased and family != "qwen2",
        mlp_bias=bool(values.get("mlp_bias", False)),
        qk_norm=family == "qwen3",
        context=_size(values, "max_position_embeddings", where, 0),
        stored=stored,
        activation=one_line(str(values.get("hidden_act", "silu")), 40),
        attention_dropout=bool(values.get("attention_dropout", 0)),
    )


def _read_stored(values: Mapping[str, Any], where: str) -> StoredWeights:
    """Return how a repository stores its linear layers, by ``quantization_config``.

    Raises:
        InputError: By another program than bitsandbytes.
    """
    found = values.get("quantization_config")
    if not found:
        return "none"
    settings = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    method = settings.get("quant_method", "bitsandbytes")
    bits = {"4bit": settings.get("load_in_4bit"), "8bit": settings.get("load_in_8bit")}
    stored = next((name for name, is_so in bits.items() if is_so), None)
    if method != "bitsandbytes" or stored is None:
        got = f"its weights are quantized by {one_line(str(method), 40)!r}"
        needs = "use the repository in 16 bits, or one that bitsandbytes quantized"
        raise InputError(where, got, needs)
    return cast("StoredWeights", stored)


def _size(values: Mapping[str, Any], name: str, where: str, default: int | None = None) -> int:
    value = values.get(name)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(where, f"found {name} {value!r}", "expected a whole number above 0")
    return value


def _read_file(path: Path) -> ModelSpec:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        where = f"--model {path.parent}"
        raise InputError(where, "no config.json in it", "expected a folder with a model") from None
    except (OSError, ValueError, RecursionError) as error:
        needs = "expected the model's config.json"
        raise InputError(str(path), one_line(str(error), 80), needs) from None
    if not isinstance(values, dict):
        raise InputError(str(path), "not a JSON object", "expected the model's config.json")
    return read_model_spec(cast("dict[str, Any]", values), str(path))


def _fetch_from_hub(config: RunConfig) -> ModelSpec:
    """Fetch only config.json, from the local cache if it is there.

    Raises:
        InputError, RunFailed: as :func:`medcot.data.hub.explain_hub_error`.
    """
    import huggingface_hub
    from httpx import HTTPError
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    from medcot.data.hub import explain_hub_error

    check_connection()
    hub: Any = huggingface_hub  # its signatures hold types without their parameters
    revision = config.model_revision or None
    limit_hub_requests()
    try:
        path: str = hub.hf_hub_download(
            config.model, "config.json", revision=revision, token=hub_token()
        )
    except HFValidationError:
        got = Message("error_found", {"value": repr(config.model)})
        needs = Message("needs_folder_or_hub_name", {"model": BUNDLED_MODEL})
        raise InputError("--model", got, needs) from None
    except (HfHubHTTPError, HTTPError, OSError, ValueError) as error:
        raise explain_hub_error(error, f"--model {config.model}", "model") from None
    return _read_file(Path(path))
