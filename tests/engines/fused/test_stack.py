"""The fused training pass against transformers' own modules under autograd."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from medcot.config.schema import TARGET_MODULES
from medcot.data.tokenization import IGNORED
from medcot.engines.fallbacks import collect_fallbacks
from medcot.engines.fused import reference_ops
from medcot.engines.fused import stack as stack_module
from medcot.engines.fused.decoder_layer import DecoderLayer
from medcot.engines.fused.packing import PackedCollator, pack
from medcot.engines.fused.stack import DecoderStack, find_ops_fault, fused_forward
from medcot.engines.fused.varlen_attention import attend_by_row, choose_attention
from tests.support.fakes import make_tiny_model
from tests.support.training_run import Training, make_rows

needs_products_in_fp8 = pytest.mark.skipif(
    not torch.cuda.is_available() and torch.__version__ < "2.11",
    reason="torch 2.10 scales fp8 products by row on GPUs alone",
)


def make_adapted(folder, dtype=torch.float32, alpha=8, **changes):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **changes)
    config = LoraConfig(r=4, lora_alpha=alpha, target_modules=list(TARGET_MODULES))
    model = get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1)
        elif "norm" in name:
            # Drawn in float32: the same numbers for every dtype.
            parameter.data.copy_(torch.rand(parameter.shape) + 0.5)
    return model


def make_examples(shared=0):
    """Rows of random tokens, the first ``shared`` of them the same in all."""
    torch.manual_seed(2)
    lengths = ((9, 3), (17, 5), (4, 1))
    first = torch.randint(0, 1000, (shared,)).tolist()
    pairs = [
        (first + torch.randint(0, 1000, (length,)).tolist(), shared + prompt)
        for length, prompt in lengths
    ]
    return [
        {"input_ids": ids, "labels": [IGNORED] * prompt + ids[prompt:]} for ids, prompt in pairs
    ]


def plain_loss(model, examples):
    """Each row on its own, by the modules themselves."""
    total = torch.zeros(())
    for example in examples:
        logits = model(input_ids=torch.tensor([example["input_ids"]])).logits[0, :-1]
        labels = torch.tensor(example["labels"][1:])
        total = total + cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")
    return total


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


WINDOWS = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}
SHAPES = {
    "llama": {},
    "biases": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    # Heads wider than the hidden states together, norms over each, windows in all but one layer.
    "qwen3": WINDOWS | {"family": "qwen3", "head_dim": 16},
}


@pytest.fixture(scope="module", params=SHAPES)
def folder(request, tmp_path_factory):
    return make_tiny_model(
        tmp_path_factory.mktemp(request.param), num_hidden_layers=3, **SHAPES[request.param]
    )


@pytest.mark.parametrize("shared", [0, 20])
@pytest.mark.parametrize("recomputed", [0, 1, 3])
def test_loss_and_gradients_are_those_of_the_modules_row_by_row(folder, recomputed, shared):
    model, examples = make_adapted(folder), make_examples(shared)
    wanted = plain_loss(model, examples)
    wanted.backward()
    expected = gradients(model)
    model.zero_grad()
    batch = PackedCollator()(examples)
    assert batch["rows"].shared == shared
    with fused_forward(model, recomputed):
        got = model(**batch)
        got.backward()
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-4)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({"family": "mistral", "sliding_window": 6}, [6, 6]),
        ({"family": "mistral", "sliding_window": None}, [None, None]),
        ({"family": "qwen2"} | WINDOWS, [None, 6]),
        ({"family": "qwen2"} | WINDOWS | {"use_sliding_window": False}, [None, None]),
        ({"sliding_window": 6}, [None, None]),  # Llama has none, whatever its config says.
    ],
)
def test_windows_are_those_of_the_modules(changes, windows, tmp_path):
    model, examples = make_adapted(make_tiny_model(tmp_path, **changes)), make_examples(20)
    with fused_forward(model, 0) as stack, torch.no_grad():
        assert [layer.window for layer in stack.layers] == windows
        got = model(**PackedCollator()(examples))
    torch.testing.assert_close(got, plain_loss(model, examples).detach(), rtol=1e-5, atol=1e-4)


def test_rows_do_not_see_each_other(folder):
    model, examples = make_adapted(folder), make_examples()
    with fused_forward(model, 0), torch.no_grad():
        apart = sum(model(**PackedCollator()([example])) for example in examples)
        together = model(**PackedCollator()(examples))
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-4)


def test_plain_forward_is_restored_after_the_context(folder):
    model, examples = make_adapted(folder), make_examples()
    ids = torch.tensor([examples[0]["input_ids"]])
    before = model(input_ids=ids).logits
    with fused_forward(model, 0):
        model(**PackedCollator()(examples)).backward()
    assert torch.equal(model(input_ids=ids).logits, before)
    assert "forward" not in model.__dict__


def with_function(**changes):
    """Make operations that are the reference's except for ``changes``."""
    from types import SimpleNamespace

    names = ("rms_norm", "add_rms_norm", "recompute_rms_norm", "rms_norm_backward", "swiglu",
             "swiglu_backward", "apply_rope_", "norm_rope", "head_norm_backward_",
             "qkv_rope_backward", "cross_entropy_", "quantize_rows")  # fmt: skip
    return SimpleNamespace(**({name: getattr(reference_ops, name) for name in names} | changes))


def test_operations_that_are_wrong_or_fail_on_this_device_are_found(folder):
    def wrong(gate_up, out):
        out.fill_(1.0)

    def failing(*_):
        raise RuntimeError("no kernel image is available")

    with torch.no_grad():
        stack = DecoderStack(make_adapted(folder), 0)
        for functions, agrees in (
            (with_function(), True),
            (with_function(swiglu=wrong), False),
            (with_function(rms_norm_backward=failing), False),
        ):
            stack.backend.ops = functions
            fault = find_ops_fault(stack.layers[0], stack.rotary)
            assert (fault is None) is agrees
            assert stack.backend.ops is functions


def test_where_triton_fails_the_pass_warns_and_gives_the_right_loss(folder, monkeypatch):
    model, examples = make_adapted(folder), make_examples()
    wrong = with_function(swiglu=lambda gate_up, out: out.fill_(1.0))
    monkeypatch.setattr(stack_module, "choose_ops", lambda device: wrong)
    with collect_fallbacks() as found, pytest.warns(UserWarning, match="continues without"):  # noqa: SIM117
        with fused_forward(model, 0):
            got = model(**PackedCollator()(examples))
    assert [fallback.code for fallback in found.sorted()] == ["triton-failed"]
    torch.testing.assert_close(got, plain_loss(model, examples), rtol=1e-5, atol=1e-4)


def test_out_of_memory_in_the_trial_is_raised_and_no_verdict_on_the_kernels(folder):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    stack = DecoderStack(make_adapted(folder), 0)
    stack.backend.ops = with_function(rms_norm=full)
    with pytest.raises(torch.OutOfMemoryError):
        find_ops_fault(stack.layers[0], stack.rotary)


def test_a_pass_wrapped_by_accelerate_gives_the_same_loss_and_is_removed(folder):
    """As it does for fp16: the loss must be the same, and nothing of it must stay behind."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    # One process has one state; other tests left theirs, and this one must not stay either.
    AcceleratorState._reset_state(reset_partial_state=True)
    model, batch = make_adapted(folder), PackedCollator()(make_examples())
    with fused_forward(model, 0):
        wanted = model(**batch)
    with fused_forward(model, 0):
        wrapped = Accelerator(mixed_precision="bf16", cpu=True).prepare_model(model)
        torch.testing.assert_close(wrapped(**batch), wanted)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert not {"forward", "_original_forward"} & set(model.__dict__)


def test_half_precision_gradients_are_as_close_as_half_precision_is(folder):
    examples = make_examples()
    exact = make_adapted(folder)
    plain_loss(exact, examples).backward()
    wanted = gradients(exact)
    for dtype in (torch.bfloat16, torch.float16):
        model = make_adapted(folder, dtype)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                source = dict(exact.named_parameters())[name]
                parameter.data = source.data.clone()
        with fused_forward(model, 1):
            model(**PackedCollator()(examples)).backward()
        got = gradients(model)
        assert all(gradient.dtype == torch.float32 for gradient in got.values())
        worst = max(((got[n] - wanted[n]).norm() / wanted[n].norm()).item() for n in wanted)
        assert worst < (0.1 if dtype == torch.bfloat16 else 0.02), worst


def test_attention_by_row_is_causal_and_keeps_rows_apart():
    torch.manual_seed(0)
    query = torch.randn(12, 4, 8)
    key, value = torch.randn(2, 12, 2, 8)
    output, backward = attend_by_row(query, key, value, pack((5, 7)), for_backward=False)
    assert backward is None
    for start, end in ((0, 5), (5, 12)):
        for place in range(start, end):
            for head in range(4):
                scores = key[start : place + 1, head // 2] @ query[place, head] / 8**0.5
                wanted = scores.softmax(0) @ value[start : place + 1, head // 2]
                torch.testing.assert_close(output[place, head], wanted)


def test_a_cpu_attends_row_by_row():
    assert choose_attention(torch.device("cpu"), torch.float32, 64) is attend_by_row


def test_the_first_token_of_a_row_is_never_a_target():
    batch = PackedCollator()(
        [{"input_ids": [5, 6], "labels": [5, 6]}, {"input_ids": [7, 8], "labels": [7, 8]}]
    )
    assert batch["targets"].tolist() == [6, 8]
    assert batch["label_positions"].tolist() == [0, 2]
    assert batch["labels"].tolist() == [[IGNORED, 6, IGNORED, 8]]


@pytest.fixture(scope="module")
def rows(tiny_model):
    return make_rows(tiny_model)


class FusedTraining(Training):
    """The same fit through the fused pass."""

    def __init__(self, folder, model, rows, **changes):
        super().__init__(folder, model, rows, engine="fused", **changes)


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory, tiny_model, rows):
    training = Training(
        tmp_path_factory.mktemp("plain") / "run", tiny_model, rows, engine="transformers"
    )
    training.fit()
    return training


def test_the_loss_curve_is_that_of_the_plain_engine(plain_run, tmp_path, tiny_model, rows):
    fused = FusedTraining(tmp_path / "run", tiny_model, rows)
    events = []
    result = fused.fit(events.append)
    assert result.steps == 6
    assert [event.step for event in events] == [1, 2, 3, 4, 5, 6]
    assert fused.losses() == pytest.approx(plain_run.losses(), abs=2e-3)
    on_disk = list(fused.directory.rows(fused.directory.events))
    plain = list(plain_run.directory.rows(plain_run.directory.events))
    for name in ("tokens", "learning_rate"):
        assert [row[name] for row in on_disk] == [row[name] for row in plain]
    assert [row["grad_norm"] for row in on_disk] == pytest.approx(
        [row["grad_norm"] for row in plain], rel=2e-2
    )


def test_a_cancelled_fused_training_resumes_to_the_same_losses(tmp_path, tiny_model, rows):
    whole = FusedTraining(tmp_path / "whole", tiny_model, rows)
    whole.fit()
    seen = []
    first = FusedTraining(tmp_path / "run", tiny_model, rows)
    assert first.fit(seen.append, should_stop=lambda: len(seen) >= 2).cancelled
    second = FusedTraining(tmp_path / "run", tiny_model, rows)
    assert second.fit().steps == 6
    assert second.losses() == pytest.approx(whole.losses(), abs=1e-6)


def test_out_of_memory_recomputes_layers_before_it_halves_the_rows(tmp_path, tiny_model, rows):
    training = FusedTraining(tmp_path / "run", tiny_model, rows)
    calls = []
    plan = replace(training.plan, micro_batch=4, accumulation=1, recomputed_layers=0)
    original = DecoderLayer.forward_to_gate_up

    def refuse_keeping(self, hidden, positions, *, for_backward):
        calls.append(for_backward)
        if for_backward and len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, hidden, positions, for_backward=for_backward)

    DecoderLayer.forward_to_gate_up = refuse_keeping
    try:
        result = training.fit(plan=plan)
    finally:
        DecoderLayer.forward_to_gate_up = original
    assert (result.plan.micro_batch, result.plan.recomputed_layers) == (4, 2)
    assert result.steps == 6


@needs_products_in_fp8
def test_products_in_8_bit_floats_are_nearly_those_of_16(folder):
    """Exactly computed from rounded numbers: 3 bits behind the leading one, so 2 to 3 % each."""
    examples = make_examples(20)
    for dtype in (torch.float32, torch.bfloat16):
        model, batch = make_adapted(folder, dtype), PackedCollator()(examples)
        weights = {name: p.clone() for name, p in model.named_parameters()}
        with fused_forward(model, 1):
            wanted = model(**batch)
            wanted.backward()
        expected = gradients(model)
        model.zero_grad()
        with fused_forward(model, 1, fp8=True) as stack:
            got = model(**batch)
            got.backward()
            normed = stack.layers[0].head_norms is not None
        assert got.item() != wanted.item()
        assert got.item() == pytest.approx(wanted.item(), rel=0.01)
        for name, gradient in gradients(model).items():
            off = (gradient - expected[name]).norm() / expected[name].norm()
            # Heads that a norm makes as long as their width attend more sharply.
            assert off < (0.25 if normed else 0.2), (name, off)
        assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())


@needs_products_in_fp8
def test_a_row_of_zeros_and_a_large_number_survive_rounding_to_8_bits():
    from medcot.engines.fused.fp8 import Fp8Weight
    from medcot.engines.fused.reference_ops import quantize_rows

    x = torch.randn(3, 32)
    x[0], x[1, 5] = 0.0, 3e4
    rows, scales = quantize_rows(x, 16)
    assert rows.shape == (16, 32)
    back = rows[:3].float() * scales[:3, None]
    assert torch.equal(back[0], x[0])
    assert back[1, 5] == pytest.approx(3e4, rel=1e-3)
    assert (back[2] - x[2]).abs().max() <= x[2].abs().max() / 16
    weight = torch.randn(48, 32)
    product = Fp8Weight([weight[:32], weight[32:]], reference_ops).forward(x, reference_ops)
    assert product.shape == (3, 48)
    assert torch.equal(product[0], torch.zeros(48))


def test_where_8_bit_matmuls_fail_the_pass_warns_and_computes_in_16_bits(folder, monkeypatch):
    def missing(*_, **__):
        raise RuntimeError("torch._scaled_mm is only supported on CUDA devices with 8.9")

    monkeypatch.setattr(torch, "_scaled_mm", missing)
    model, examples = make_adapted(folder), make_examples()
    with collect_fallbacks() as found, pytest.warns(UserWarning, match="in 16 bits"):  # noqa: SIM117
        with fused_forward(model, 0, fp8=True):
            got = model(**PackedCollator()(examples))
    assert [fallback.code for fallback in found.sorted()] == ["no-fp8"]
    torch.testing.assert_close(got, plain_loss(model, examples), rtol=1e-5, atol=1e-4)


@needs_products_in_fp8
def test_a_training_in_8_bit_floats_has_the_loss_curve_of_the_plain_engine(
    plain_run, tmp_path, tiny_model, rows
):
    training = FusedTraining(tmp_path / "run", tiny_model, rows)
    training.fit(plan=replace(training.plan, quantization="fp8"))
    assert training.losses() == pytest.approx(plain_run.losses(), abs=1e-2)
    assert training.losses() != pytest.approx(plain_run.losses(), abs=1e-6)


@needs_products_in_fp8
def test_copies_of_weights_are_freed_after_the_training(folder):
    from weakref import ref

    model, batch = make_adapted(folder), PackedCollator()(make_examples())
    with fused_forward(model, 0, fp8=True) as stack:
        model(**batch).backward()
        copies = [ref(linear.fp8) for layer in stack.layers for linear in layer.linears]
    assert stack is not None
    assert all(copy() is None for copy in copies)


def test_adapters_are_one_flat_tensor_within_the_context_only(folder):
    model, batch = make_adapted(folder), PackedCollator()(make_examples())
    trained = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]

    def storages():
        return {p.untyped_storage().data_ptr() for p in trained}

    with fused_forward(model, 0) as stack:
        master = stack.adapters.gather()
        model(**batch).backward()
        assert len(storages()) == 1
        norms = torch.stack([p.grad.norm() for p in trained])
        torch.testing.assert_close(master.grad.norm(), norms.norm())
        kept = master.grad.clone()
        model(**batch).backward()
        torch.testing.assert_close(master.grad, 2 * kept)
        model.zero_grad()
        model(**batch).backward()
        torch.testing.assert_close(master.grad, kept)
        with torch.no_grad():
            master += 1
    assert len(storages()) == len(trained)
    assert all(torch.equal(p, old + 1) for p, old in zip(trained, before, strict=True))
    assert all(p.grad is not None for p in trained)
