"""The Triton kernels compile for a T4 to machine code. Needs Triton with its ptxas, but no GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402  # pyright: ignore
from triton.compiler import ASTSource  # noqa: E402  # pyright: ignore
from triton.runtime.jit import JITFunction  # noqa: E402  # pyright: ignore

from medcot.engines.fused import triton_ops  # noqa: E402
from medcot.engines.fused.packing import pack  # noqa: E402

KERNELS = {
    name: kernel
    for name, kernel in vars(triton_ops).items()
    if isinstance(kernel, JITFunction) and name.endswith("_kernel")
}
TYPES = {
    torch.float16: "*fp16", torch.float32: "*fp32", torch.int32: "*i32", torch.int64: "*i64",
    torch.float8_e4m3fn: "*fp8e4nv",
}  # fmt: skip
WIDTH, INTER, HEADS, KV_HEADS, DIM, VOCAB = 4096, 14336, 32, 8, 128, 128256

if not KERNELS:
    pytest.skip("TRITON_INTERPRET=1 compiles nothing", allow_module_level=True)

Launch = tuple[str, tuple[Any, ...], dict[str, Any]]


def half(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.float16)


def launch_everything() -> None:
    """Call every operation as a training step of an 8B model in fp16 does, on three rows."""
    rows = pack((3, 4, 5), shared=2)
    tokens = sum(rows.query_lengths)
    hidden, weight, out = half(tokens, WIDTH), half(WIDTH), half(tokens, WIDTH)
    rstd, tables = torch.zeros(tokens), torch.zeros(tokens, DIM)
    triton_ops.rms_norm(hidden, weight, 1e-5, out)
    triton_ops.add_rms_norm(hidden, hidden, weight, 1e-5, out)
    triton_ops.recompute_rms_norm(hidden, weight, rstd, out)
    for residual in (None, hidden):
        triton_ops.rms_norm_backward(hidden, hidden, weight, rstd, residual)
    triton_ops.swiglu(half(tokens, 2 * INTER), half(tokens, INTER))
    triton_ops.swiglu_backward(half(tokens, INTER), half(tokens, 2 * INTER))
    for cos in (tables, tables.half()):
        qkv = half(tokens, (HEADS + 2 * KV_HEADS) * DIM)
        triton_ops.apply_rope_(qkv, cos, cos, HEADS + KV_HEADS, DIM)
        triton_ops.norm_rope(qkv, half(HEADS + KV_HEADS, DIM), 1e-6, cos, cos)
    triton_ops.head_norm_backward_(qkv, qkv, half(HEADS + KV_HEADS, DIM), 1e-6)
    for packed in (rows, pack((3, 4, 5))):
        keys = sum(packed.key_lengths)
        count = sum(packed.query_lengths)
        of_keys, cos = half(keys, KV_HEADS, DIM), torch.zeros(count, DIM)
        triton_ops.qkv_rope_backward(half(count, HEADS, DIM), of_keys, of_keys, cos, cos, packed)
    triton_ops.cross_entropy_(half(tokens, VOCAB), torch.zeros(tokens, dtype=torch.int64))
    triton_ops.quantize_rows(hidden, 16)


@pytest.fixture(scope="module")
def launches() -> list[Launch]:
    """Every kernel's arguments, recorded in place of a launch."""
    found: list[Launch] = []

    class Recorder:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, _grid: object) -> Any:
            return lambda *args, **options: found.append((self.name, args, options))

    with pytest.MonkeyPatch.context() as patch:
        for name in KERNELS:
            patch.setattr(triton_ops, name, Recorder(name))
        launch_everything()
    return found


def compile_for(capability: int, launch: Launch) -> bytes:
    name, arguments, options = launch
    kernel = KERNELS[name]
    given = dict(zip(kernel.arg_names, arguments, strict=False)) | options
    signature, constants = {}, {}
    for parameter in kernel.params:
        value = given.pop(parameter.name)
        if parameter.is_constexpr:
            signature[parameter.name], constants[(parameter.num,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = TYPES[value.dtype]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
    source = ASTSource(kernel, signature, constants)
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options=given).asm["cubin"]


def test_every_kernel_but_the_one_for_8_bit_floats_compiles_for_a_t4(
    launches: list[Launch],
) -> None:
    assert {name for name, _, _ in launches} == set(KERNELS)
    for launch in launches:
        if launch[0] != "_quantize_rows_kernel":
            assert compile_for(75, launch)[:4] == b"\x7fELF", launch[0]


def test_8_bit_floats_need_a_newer_gpu(launches: list[Launch]) -> None:
    [launch] = [one for one in launches if one[0] == "_quantize_rows_kernel"]
    with pytest.raises(triton.CompilationError, match="fp8e4nv not supported"):
        compile_for(75, launch)
    assert compile_for(89, launch)[:4] == b"\x7fELF"
