"""Layers with 4-bit weights, by a stand-in for bitsandbytes, which needs no GPU."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch

from medcot.engines.fused.nf4 import DequantBuffer, Nf4Weight
from medcot.engines.hf import compute_in


@dataclass
class State:
    scale: float
    dtype: torch.dtype = torch.bfloat16


class Params4bit(torch.nn.Parameter):
    quant_state: State | None = None


class Linear4bit(torch.nn.Linear):
    """bitsandbytes' class as far as it is looked at: codes, and the state that scales them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)
        codes = torch.randint(-8, 8, (outputs, inputs), dtype=torch.int8)
        self.weight = Params4bit(codes, requires_grad=False)
        self.weight.quant_state = State(scale=0.25)
        self.compute_dtype = torch.bfloat16


def dequantize_4bit(codes: torch.Tensor, state: State) -> torch.Tensor:
    return (codes.float() * state.scale).to(state.dtype)


@pytest.fixture(autouse=True)
def bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("bitsandbytes.functional")
    vars(module)["dequantize_4bit"] = dequantize_4bit
    monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", module)


def test_a_group_of_4_bit_and_16_bit_layers_is_one_matrix() -> None:
    """Repositories with dynamic quantization leave some layers, such as one key of many, alone."""
    torch.manual_seed(0)
    plain = torch.nn.Linear(16, 6, bias=False, dtype=torch.float16)
    for layers in ([Linear4bit(16, 8), plain], [plain, Linear4bit(16, 8)]):
        joined = Nf4Weight(layers, DequantBuffer(torch.float16))
        parts = [
            plain.weight if one is plain else dequantize_4bit(one.weight.data, State(0.25))
            for one in layers
        ]
        expected = torch.cat([part.to(torch.float16) for part in parts])
        assert torch.equal(joined.dequantize(), expected)


def test_a_repository_that_was_quantized_in_bfloat16_computes_in_the_runs_dtype() -> None:
    layer = Linear4bit(16, 8)
    compute_in(torch.float16, torch.nn.Sequential(layer, torch.nn.Linear(8, 2)))
    weight = layer.weight
    assert isinstance(weight, Params4bit)
    assert weight.quant_state == State(0.25, torch.float16)
    assert layer.compute_dtype == torch.float16
