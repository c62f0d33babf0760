"""Asks an architecture for its sizes: transformers builds it without memory, and it is counted.

Importing torch and transformers takes seconds, and some engines must be imported before them. So
the counting runs in a process of its own, unless this one has imported transformers by now; what
was counted is kept in the cache folder by the content of the model's config.json.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from medcot.errors import InputError, one_line
from medcot.paths import PACKAGE, cache_folder

logger = logging.getLogger(__name__)

FORMAT = 1
"""Version of the counts, to be raised with each change: older ones are then not used."""
LONGEST_S = 300
"""Seconds after which the counting process is given up; it takes five to ten on two cores."""
MOST_LAYERS = 1000
"""Layers of the deepest model that is built; the deepest published ones have about 130."""

ROUTERS = ("gate", "router", "shared_expert_gate")
"""Linear layers that choose experts. An adapter on them would change which expert is asked."""
MAMBA = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
"""Families in which peft refuses an adapter on ``out_proj``, which their kernels read by itself."""
ACTIVE_EXPERTS = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk")
"""Names that configs give to the number of experts that read each token."""

NEEDS = "expected a causal language model of transformers"


@dataclass(frozen=True)
class Linear:
    """A linear layer of the text part: its path in the model, and its input and output widths."""

    path: str
    inner: int
    outer: int

    @property
    def name(self) -> str:
        """Return the last part of the path, by which peft finds it."""
        return self.path.rpartition(".")[2]


def list_text_linears(model: Any) -> list[Linear]:
    """List the linear layers that get LoRA: all of the text part, without head and routers.

    Layers of a vision or audio tower are no part of it, nor are experts that are stacked into one
    tensor, because they are no layers.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    text = {id(module) for module in model.get_decoder().modules()}
    family = getattr(model.config, "model_type", "")
    left_out = {*ROUTERS, *(("out_proj",) if family in MAMBA else ())}
    head = model.get_output_embeddings()
    found: list[Linear] = []
    for path, module in model.named_modules():
        if id(module) not in text or module is head or path.rpartition(".")[2] in left_out:
            continue
        if isinstance(module, nn.Linear):
            found.append(Linear(path, module.in_features, module.out_features))
        elif isinstance(module, Conv1D):
            found.append(Linear(path, *module.weight.shape))
    return found


def list_towers(model: Any) -> list[str]:
    """Name the parts that read no text, such as ``vision_tower``; they stay as they are."""
    parts = [model.get_decoder(), model.get_output_embeddings(), model.get_input_embeddings()]
    text = {id(weight) for part in parts if part is not None for weight in part.parameters()}
    names: dict[str, None] = {}
    for path, weight in model.named_parameters():
        if id(weight) not in text:
            steps = [step for step in path.split(".")[:-1] if step != "model"]
            names[steps[0] if steps else path] = None
    return list(names)


def count_architecture(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the sizes of the model that ``values``, a ``config.json``, describes.

    The keys are the fields of :class:`medcot.planning.model_specs.CountedSpec`.

    Raises:
        InputError: ``where`` describes no causal language model that transformers can build.
    """
    family = values.get("model_type")
    if not isinstance(family, str) or not _is_known(family):
        unknown = f", which transformers {version('transformers')} does not know" if family else ""
        found = repr(family) if family else "'missing'"
        raise InputError(where, one_line(f"found model_type {found}{unknown}"), NEEDS)
    text = json.dumps({"format": FORMAT, "transformers": version("transformers"), **values})
    kept = cache_folder() / "architectures" / f"{hashlib.sha256(text.encode()).hexdigest()}.json"
    try:
        found = json.loads(kept.read_text(encoding="utf-8"))
        if found["family"] == family:
            return found
    except (OSError, ValueError, TypeError, KeyError):
        pass  # not counted yet, or damaged
    count = _count if sys.modules.get("transformers") else _count_elsewhere
    found = count(values)
    if problem := found.get("problem"):
        raise InputError(where, str(problem), str(found.get("needs", NEEDS)))
    _keep(kept, found)
    return found


def _is_known(family: str) -> bool:
    """Tell without importing transformers whether its tables name ``family``."""
    package = find_spec("transformers")
    if package is None or package.origin is None:
        raise InputError("transformers", "it is not installed", "run pip install medcot")
    tables = (Path(package.origin).parent / "models" / "auto").glob("*.py")
    return any(f'"{family}"' in table.read_text(encoding="utf-8") for table in tables)


def _keep(path: Path, found: Mapping[str, Any]) -> None:
    unfinished = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(found), encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        logger.info("the counted sizes are not kept: %s", error)


def _count_elsewhere(values: Mapping[str, Any]) -> dict[str, Any]:
    """Count in a process of its own."""
    paths = [str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "CUDA_VISIBLE_DEVICES": "",
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", "medcot.planning.architecture"],
            input=json.dumps(values), capture_output=True, text=True, env=environment,
            timeout=LONGEST_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"problem": f"building it took over {LONGEST_S} s"}
    lines = (done.stdout if not done.returncode else done.stderr).strip().splitlines()
    last = lines[-1] if lines else f"the counting process ended with {done.returncode}"
    return {"problem": one_line(last)} if done.returncode else json.loads(last)


def _count(values: Mapping[str, Any]) -> dict[str, Any]:
    """Build and count the model, or return what is the ``problem``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _count_built(values)
        except Exception as error:  # noqa: BLE001 - a wrong size makes a model raise anything
            return {"problem": one_line(f"it cannot be built ({type(error).__name__}: {error})")}


def _count_built(values: Mapping[str, Any]) -> dict[str, Any]:
    import torch
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    library: Any = transformers  # its signatures hold types without their parameters
    family = str(values["model_type"])
    if family not in library.CONFIG_MAPPING:
        return {"problem": f"found model_type {family!r}, which is no causal language model"}
    nested = [cast("dict[str, Any]", one) for one in values.values() if isinstance(one, dict)]
    parts: list[Mapping[str, Any]] = [values, *nested]
    if any(_whole(part.get("num_hidden_layers")) > MOST_LAYERS for part in parts):
        return {"problem": f"found over {MOST_LAYERS} layers"}
    # What a repository was quantized with says nothing of the sizes.
    plain = {name: value for name, value in values.items() if name != "quantization_config"}
    config = library.CONFIG_MAPPING[family].from_dict(plain)
    reads_both_ways = family in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(
        config, "is_decoder", False
    )
    if (
        type(config) not in library.MODEL_FOR_CAUSAL_LM_MAPPING
        or getattr(config, "is_encoder_decoder", False)
        or reads_both_ways
    ):
        return {"problem": f"found model_type {family!r}, which is no causal language model"}
    text = config.get_text_config(decoder=True)
    with torch.device("meta"):
        model = library.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return {"family": family, **_measure(model, text)}


def _measure(model: Any, text: Any) -> dict[str, Any]:
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    vocab, hidden = embeddings.weight.shape
    layers = _whole(getattr(text, "num_hidden_layers", 0)) or 1
    heads = _whole(getattr(text, "num_attention_heads", 0)) or 1
    experts = {
        path: weight
        for path, weight in model.named_parameters()
        if ".experts." in path and weight.ndim == 3
    }
    count = max((weight.shape[0] for weight in experts.values()), default=0)
    active = next((_whole(n) for name in ACTIVE_EXPERTS if (n := getattr(text, name, 0))), 0)
    stacked = sum(weight.numel() for weight in experts.values())
    linears = list_text_linears(model)
    multiplied = sum(one.inner * one.outer for one in linears) + head.weight.numel()
    return {
        "hidden": hidden,
        "intermediate": _feed_forward(text, hidden, active if count else 0),
        "layers": layers,
        "heads": heads,
        "kv_heads": _whole(getattr(text, "num_key_value_heads", 0)) or heads,
        "head_dim": _whole(getattr(text, "head_dim", 0)) or hidden // heads,
        "vocab": vocab,
        "tied_embeddings": head.weight is embeddings.weight,
        "context": _whole(getattr(text, "max_position_embeddings", 0)),
        "total": model.num_parameters(),
        "quantizable": sum(_linear_weights(model, head)),
        "multiplied": multiplied + (stacked * (active or count) // count if count else 0),
        "linears": _by_name(linears),
        "experts": count,
        "towers": list_towers(model),
        "attention": "sdpa" if model._supports_sdpa else "eager",
    }


def _linear_weights(model: Any, head: Any) -> Iterator[int]:
    from torch import nn

    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not head:
            yield module.weight.numel()


def _by_name(linears: list[Linear]) -> dict[str, list[int]]:
    """Return by name the widths of the largest such layer, and the sum of all their widths."""
    found: dict[str, list[int]] = {}
    for one in linears:
        inner, outer, widths = found.get(one.name, [0, 0, 0])
        if one.inner * one.outer > inner * outer:
            inner, outer = one.inner, one.outer
        found[one.name] = [inner, outer, widths + one.inner + one.outer]
    return found


def _feed_forward(text: Any, hidden: int, active: int) -> int:
    """Return the width of the feed-forward network; of experts, all that read a token together."""
    dense = _whole(getattr(text, "intermediate_size", 0)) or 4 * hidden
    if not active:
        return dense
    expert = _whole(getattr(text, "moe_intermediate_size", 0)) or dense
    shared = _whole(getattr(text, "shared_expert_intermediate_size", 0))
    return max(dense, active * expert + shared)


def _whole(value: Any) -> int:
    """Return a size as a number; the largest where each layer has its own, 0 where it is none."""
    if isinstance(value, (list, tuple)):
        return max(map(_whole, cast("list[Any]", value)), default=0)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


if __name__ == "__main__":
    print(json.dumps(_count(json.load(sys.stdin))))
