"""Triton kernels agree with the reference. Needs a GPU, or Triton's interpreter."""

import os

import pytest
import torch

pytest.importorskip("triton")
DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
if DEVICE == "cuda" and not torch.cuda.is_available():
    pytest.skip("needs a CUDA device, or TRITON_INTERPRET=1", allow_module_level=True)

from medcot.engines.fused import reference_ops, triton_ops  # noqa: E402
from medcot.engines.fused.packing import pack  # noqa: E402

TOKENS, WIDTH, HEADS, KV_HEADS, DIM = 5, 48, 6, 2, 16


def random(*shape, seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return torch.randn(*shape).to(DEVICE, dtype)


def strided(tokens, width, dtype):
    """A part of a wider buffer, filled with what must not survive."""
    return torch.full((tokens, width + 8), 7.0, device=DEVICE, dtype=dtype)[:, :width]


def close(got, wanted, dtype):
    exact = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(got, wanted, **exact)


@pytest.fixture(params=[torch.float32, torch.float16], ids=["fp32", "fp16"])
def dtype(request):
    return request.param


def test_norms(dtype):
    hidden, update = random(TOKENS, WIDTH, dtype=dtype), random(TOKENS, WIDTH, seed=1, dtype=dtype)
    weight, gradient = (
        random(WIDTH, seed=2, dtype=dtype),
        random(TOKENS, WIDTH, seed=3, dtype=dtype),
    )
    outs = [strided(TOKENS, WIDTH, dtype) for _ in range(6)]
    scales = [
        module.rms_norm(hidden, weight, 1e-5, out)
        for module, out in zip((triton_ops, reference_ops), outs[:2], strict=True)
    ]
    close(scales[0], scales[1], torch.float32)
    close(outs[0], outs[1], dtype)
    sums = [
        module.add_rms_norm(hidden, update, weight, 1e-5, out)
        for module, out in zip((triton_ops, reference_ops), outs[2:4], strict=True)
    ]
    close(sums[0][0], sums[1][0], dtype)
    close(outs[2], outs[3], dtype)
    for module, out in zip((triton_ops, reference_ops), outs[4:], strict=True):
        module.recompute_rms_norm(hidden, weight, scales[0], out)
    close(outs[4], outs[5], dtype)
    for passing in (None, update):
        got, wanted = (
            module.rms_norm_backward(gradient, hidden, weight, scales[0], passing)
            for module in (triton_ops, reference_ops)
        )
        close(got, wanted, dtype)


def test_the_feed_forward_gate(dtype):
    both = random(TOKENS, 2 * WIDTH, dtype=dtype)
    gradient = strided(TOKENS, WIDTH, dtype)
    gradient.copy_(random(TOKENS, WIDTH, seed=1, dtype=dtype))
    outs = [strided(TOKENS, WIDTH, dtype) for _ in range(2)]
    for module, out in zip((triton_ops, reference_ops), outs, strict=True):
        module.swiglu(both, out)
    close(*outs, dtype)
    got = triton_ops.swiglu_backward(gradient, both)
    wanted = reference_ops.swiglu_backward(gradient, both)
    for one, other in zip(got, wanted, strict=True):
        close(one, other, dtype)


def test_rotations(dtype):
    angles = random(TOKENS, DIM // 2, seed=4).repeat(1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    qkv = random(TOKENS, (HEADS + 2 * KV_HEADS) * DIM, dtype=dtype)
    got, wanted = qkv.clone(), qkv.clone()
    triton_ops.apply_rope_(got, cos, sin, HEADS + KV_HEADS, DIM)
    reference_ops.apply_rope_(wanted, cos, sin, HEADS + KV_HEADS, DIM)
    close(got, wanted, dtype)
    parts = got.unflatten(1, (-1, DIM)).split([HEADS, KV_HEADS, KV_HEADS], dim=1)
    rows = pack((TOKENS,)).to(DEVICE)
    back = triton_ops.qkv_rope_backward(*parts, cos, sin, rows)
    close(back, reference_ops.qkv_rope_backward(*parts, cos, sin, rows), dtype)
    close(back, qkv, dtype)


def test_norms_of_heads(dtype):
    angles = random(TOKENS, DIM // 2, seed=4).repeat(1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    qkv = random(TOKENS, (HEADS + 2 * KV_HEADS) * DIM, dtype=dtype)
    weight = random(HEADS + KV_HEADS, DIM, seed=1, dtype=dtype)
    got, wanted = (
        module.norm_rope(qkv, weight, 1e-6, cos, sin) for module in (triton_ops, reference_ops)
    )
    close(got, wanted, dtype)
    gradients = [random(*qkv.shape, seed=2, dtype=dtype) for _ in range(2)]
    for module, gradient in zip((triton_ops, reference_ops), gradients, strict=True):
        module.head_norm_backward_(gradient, qkv, weight, 1e-6)
    close(*gradients, dtype)


def test_gradients_of_shared_keys_come_from_every_row(dtype):
    rows = pack((4, 3, 5), shared=2).to(DEVICE)
    tokens, keys = sum(rows.query_lengths), sum(rows.key_lengths)
    angles = random(tokens, DIM // 2, seed=4).repeat(1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    queries = random(tokens, HEADS, DIM, dtype=dtype)
    key, value = (random(keys, KV_HEADS, DIM, seed=seed, dtype=dtype) for seed in (1, 2))
    got, wanted = (
        module.qkv_rope_backward(queries, key, value, cos, sin, rows)
        for module in (triton_ops, reference_ops)
    )
    close(got, wanted, dtype)


def test_losses(dtype, monkeypatch):
    monkeypatch.setattr(triton_ops, "VOCAB_BLOCK", 16)
    logits, targets = random(TOKENS, 50, dtype=dtype), torch.tensor([0, 49, 3, 17, 16])
    targets = targets.to(DEVICE)
    got, wanted = logits.clone(), logits.clone()
    close(
        triton_ops.cross_entropy_(got, targets),
        reference_ops.cross_entropy_(wanted, targets),
        torch.float32,
    )
    close(got, wanted, dtype)
    losses = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
    close(reference_ops.cross_entropy_(logits.clone(), targets), losses, torch.float32)


def test_rounding_to_8_bits(dtype):
    x = strided(TOKENS, WIDTH, dtype)
    x.copy_(random(TOKENS, WIDTH, dtype=dtype))
    x[1] = 0.0
    (got, scales), (wanted, expected) = (
        module.quantize_rows(x, 16) for module in (triton_ops, reference_ops)
    )
    close(scales[:TOKENS], expected[:TOKENS], torch.float32)
    got, wanted = got[:TOKENS].float(), wanted[:TOKENS].float()
    assert (got == wanted).float().mean() > 0.95
    # A number halfway between two may go either way; the smallest are 2^-9 apart. Triton's
    # interpreter halves what it should round up to a power of two.
    if DEVICE == "cuda":
        assert ((got - wanted).abs() <= wanted.abs() / 8 + 2**-9).all()
