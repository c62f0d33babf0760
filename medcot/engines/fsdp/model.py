"""Builds a model whose frozen weights are sharded over processes (FSDP2, ``fully_shard``).

A layer's weights are gathered before it is used and freed after it, so a model can train that fits
no single GPU. Adapters are small: every process holds them whole, and their gradients are averaged
(:mod:`medcot.training.trainers.fsdp`). Checkpoints, float32 masters and 8-bit optimizers are
therefore the usual ones.

Every process reads the files itself, one layer at a time, and quantises each layer before it is
sharded: none ever holds more than its shard and one layer. accelerate offers two other ways. Its
FSDP2 first loads all 4-bit weights on every GPU, and its FSDP1 is deprecated.
"""

from __future__ import annotations

from collections.abc import Set
from datetime import timedelta
from typing import Any

import torch
from torch import distributed, nn

from medcot.distributed import comm
from medcot.planning.plan import Plan

BLOCK = 64
"""Weights per scale of NF4."""
PATIENCE = timedelta(hours=2)
"""How long a process may wait for another in a collective: loading takes as long as disks do. A
process that fails announces it through ``medcot.distributed.rendezvous``."""


class PackedLinear(nn.Linear):
    """A frozen NF4 linear layer whose packed weights are viewed as numbers of the compute dtype.

    FSDP shards floating-point parameters only. ``state`` holds the scales, which stay whole (an
    eighth of a bit per weight).
    """

    def __init__(self, packed: torch.Tensor, state: Any, bias: torch.Tensor | None) -> None:
        rows, columns = state.shape
        super().__init__(columns, rows, bias=False, device="meta")
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.state = state

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [..., columns] to [..., rows], in autocast's dtype if it is on, else the input's."""
        import bitsandbytes as bnb  # pyright: ignore[reportMissingImports]

        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return bnb.matmul_4bit(x, self.weight.t(), quant_state=self.state, bias=bias)


def broadcast_adapter(model: Any) -> None:
    """Give the main process's adapter to every process, in place."""
    if comm.world_size() > 1:
        for value in model.parameters():
            if value.requires_grad:
                distributed.broadcast(value.data, src=0)


def build_split(
    config: Any, weights: Any, plan: Plan, dtype: torch.dtype, device: torch.device
) -> Any:
    """Build the model of ``config``, each layer sharded as soon as it is filled.

    Args:
        config: A transformers config.
        weights: A :class:`medcot.engines.fsdp.safetensors_reader.Checkpoint`, or an object with
            its methods.
    """
    model = _without_weights(config, plan, dtype)
    backbone, head = model.model, model.lm_head
    tied = bool(config.tie_word_embeddings)
    # The buffers of the rotary embedding are in no file.
    with device:
        backbone.rotary_emb = type(backbone.rotary_emb)(config=model.config)
    mesh = _mesh(device) if plan.gpus > 1 else None
    source = _Source(weights, dtype, device, quantize=plan.quantization == "4bit")
    source.fill(backbone.embed_tokens, "model.embed_tokens")
    if not tied:
        # Tied embeddings stay whole: the head uses them after the backbone has released its own.
        _shard(backbone.embed_tokens, mesh)
    for index, layer in enumerate(backbone.layers):
        source.fill(layer, f"model.layers.{index}")
        _shard(layer, mesh)
    if tied:
        head.weight = backbone.embed_tokens.weight
    else:
        source.fill(head, "lm_head")
        _shard(head, mesh)
    source.fill(backbone, "model")
    _shard(backbone, mesh, {backbone.embed_tokens.weight} if tied else set())
    # transformers then ends a generation in all processes at once.
    model._is_fsdp_managed_module = mesh is not None
    return model.requires_grad_(requires_grad=False).eval()


def _shard(module: nn.Module, mesh: Any, whole: Set[nn.Parameter] = frozenset()) -> None:
    """Shard the parameters of ``module`` over ``mesh``, if there is one, but for ``whole``."""
    if mesh is not None:
        from torch.distributed.fsdp import fully_shard

        fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=set(whole))


class _Source:
    """Fills modules from files: on the device, in the dtype, linear layers of blocks in NF4."""

    def __init__(
        self, weights: Any, dtype: torch.dtype, device: torch.device, *, quantize: bool
    ) -> None:
        self.weights, self.dtype, self.device = weights, dtype, device
        # Files that are packed already name the layers that are.
        self.quantize = quantize and not any(_is_state(name) for name in weights.names("model."))

    def fill(self, module: nn.Module, name: str) -> None:
        """Replace all parameters of ``module`` that have no values yet."""
        for path, part in list(module.named_modules()):
            full = f"{name}.{path}" if path else name
            if isinstance(part, nn.Linear) and part.weight.is_meta and self._is_packed(full):
                module.set_submodule(path, self._packed(part, full))
                continue
            for leaf, parameter in list(part.named_parameters(recurse=False)):
                if parameter.is_meta:
                    value = nn.Parameter(self._read(f"{full}.{leaf}"), requires_grad=False)
                    setattr(part, leaf, value)

    def _is_packed(self, name: str) -> bool:
        return name.startswith("model.layers.") and (
            self.quantize or any(map(_is_state, self.weights.names(f"{name}.weight.")))
        )

    def _packed(self, linear: nn.Linear, name: str) -> PackedLinear:
        from bitsandbytes.functional import (  # pyright: ignore[reportMissingImports]
            QuantState,
            quantize_4bit,
        )

        bias = None if linear.bias is None else self._read(f"{name}.bias")
        if self.quantize:
            packed, state = quantize_4bit(
                self._read(f"{name}.weight"),
                blocksize=BLOCK,
                quant_type="nf4",
                compress_statistics=True,
                quant_storage=self.dtype,
            )
            return PackedLinear(packed, state, bias)
        prefix = f"{name}.weight."
        stored = {
            part.removeprefix(f"{name}."): self.weights.read(part, self.device)
            for part in self.weights.names(prefix)
        }
        packed = self.weights.read(f"{name}.weight", self.device)
        state = QuantState.from_dict(stored, device=self.device)
        state.dtype = self.dtype
        return PackedLinear(packed.view(-1).view(self.dtype).view(-1, 1), state, bias)

    def _read(self, name: str) -> torch.Tensor:
        return self.weights.read(name, self.device).to(self.dtype).contiguous()


def _is_state(name: str) -> bool:
    return ".weight.quant_state." in name


def _without_weights(config: Any, plan: Plan, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=plan.attention
        )


def _mesh(device: torch.device) -> Any:
    """Return a one-dimensional mesh of all processes."""
    from torch.distributed.device_mesh import init_device_mesh

    if not distributed.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        # Some of the numbers that the trainer exchanges may lie on the CPU.
        backend = "cuda:nccl,cpu:gloo" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=PATIENCE)
    return init_device_mesh(device.type, (distributed.get_world_size(),))
