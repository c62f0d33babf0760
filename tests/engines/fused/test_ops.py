"""What the pass computes with, and what it reports where the fast way is missing."""

import inspect
import sys

import pytest
import torch

from medcot.engines import fused
from medcot.engines.fallbacks import collect_fallbacks
from medcot.engines.fused import reference_ops
from medcot.engines.fused.ops import Ops, choose_ops
from medcot.engines.fused.varlen_attention import attend_by_row, choose_attention

OPERATIONS = [name for name, value in vars(Ops).items() if inspect.isfunction(value)
              and not name.startswith("_")]  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("module", ["reference_ops", "triton_ops"])
def test_operations_have_the_parameters_of_the_protocol(module, name):
    if module == "triton_ops":
        pytest.importorskip("triton")
    functions = __import__(f"medcot.engines.fused.{module}", fromlist=["_"])
    expected = [*inspect.signature(getattr(Ops, name)).parameters][1:]
    assert [*inspect.signature(getattr(functions, name)).parameters] == expected


def test_a_gpu_without_triton_computes_in_plain_pytorch_and_reports_it(monkeypatch):
    monkeypatch.delattr(fused, "triton_ops", raising=False)
    monkeypatch.setitem(sys.modules, "medcot.engines.fused.triton_ops", None)
    with collect_fallbacks() as found:
        assert choose_ops(torch.device("cuda")) is reference_ops
    (fallback,) = found.sorted()
    assert fallback.code == "no-triton"
    assert "plain PyTorch" in fallback.message


@pytest.mark.parametrize(
    ("capability", "dtype", "head_dim", "cause"),
    [
        ((7, 5), torch.float16, 64, "compute capability 7.5 is below 8.0"),
        ((9, 0), torch.float32, 64, "no kernel for float32"),
        ((9, 0), torch.bfloat16, 512, "head size 512 is above 256"),
    ],
)
def test_a_gpu_without_flash_attention_attends_by_row_and_reports_why(
    monkeypatch, capability, dtype, head_dim, cause
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    with collect_fallbacks() as found:
        assert choose_attention(torch.device("cuda"), dtype, head_dim) is attend_by_row
    (fallback,) = found.sorted()
    assert fallback.code == "no-varlen-attention"
    assert cause in fallback.message


def test_a_cpu_reports_no_fallback():
    with collect_fallbacks() as found:
        assert choose_ops(torch.device("cpu")) is reference_ops
        assert choose_attention(torch.device("cpu"), torch.float32, 64) is attend_by_row
    assert found.sorted() == []
