"""An fp16 gradient that overflows: the step changes nothing, and nothing wrong is saved."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from medcot.config.presets import make_config
from medcot.engines.compat import deny_jupyter
from medcot.engines.fused import loss_scale
from medcot.engines.fused.loss_scale import GROWTH_STEPS, LARGEST_SCALE, LossScale
from medcot.errors import RunFailed
from medcot.runs.checkpoints import list_checkpoints
from medcot.training.recorder import EXPLODED_STEPS, Recorder
from medcot.training.trainers.guard import OptimizerGuard
from tests.support.training_run import Training, make_rows

deny_jupyter()  # Other test modules import marimo.
from medcot.training.trainers.fused import PackedTrainer  # noqa: E402
from medcot.training.validation import Validation  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def rows(tiny_model):
    return make_rows(tiny_model)


REAL_CLIP = PackedTrainer._clip_grad_norm


def overflow_at(monkeypatch, steps):
    """Make the gradient of these steps infinite, as a product of fp16 numbers does."""
    seen = []

    def clip(self, model):
        seen.append(1)
        if len(seen) in steps:
            self.adapters.gather().grad[3] = float("inf")
        return REAL_CLIP(self, model)

    monkeypatch.setattr(PackedTrainer, "_clip_grad_norm", clip)


def skip_at(monkeypatch, steps):
    """Keep the optimizer from doing anything at these steps."""
    real_create, seen = PackedTrainer.create_optimizer, []

    def create(self, model=None):
        optimizer = real_create(self, model)
        real_step = optimizer.step

        def step(*arguments, **options):
            seen.append(1)
            return None if len(seen) in steps else real_step(*arguments, **options)

        optimizer.step = step
        return optimizer

    monkeypatch.setattr(PackedTrainer, "create_optimizer", create)


def in_fp16(folder, tiny_model, rows, **changes):
    """A training by the fused pass in fp16, as on a T4."""
    return Training(folder, tiny_model, rows, precision="fp16", engine="fused", **changes)


def adapter(training):
    return load_file(training.directory.adapter / "adapter_model.safetensors")


def events(training):
    return list(training.directory.rows(training.directory.events))


def test_a_step_that_overflows_is_a_step_that_was_skipped(tmp_path, tiny_model, rows, monkeypatch):
    """An ordinary one, one that would be saved, and the last one."""
    overflows = {3, 4, 6}
    overflow_at(monkeypatch, overflows)
    spoilt = in_fp16(tmp_path / "spoilt", tiny_model, rows)
    assert spoilt.fit().steps == 6
    skipped = in_fp16(tmp_path / "skipped", tiny_model, rows)
    overflow_at(monkeypatch, overflows)
    skip_at(monkeypatch, overflows)
    skipped.fit()
    assert {row["step"] for row in events(spoilt) if row["grad_norm"] is None} == overflows
    ours, wanted = adapter(spoilt), adapter(skipped)
    assert all(torch.equal(ours[name], wanted[name]) for name in wanted)
    assert all(value.isfinite().all() for value in ours.values())
    saved = [one.name for one in list_checkpoints(spoilt.directory.checkpoints)]
    assert saved == ["checkpoint-2"]


def test_the_scale_is_resumed_with_the_training(tmp_path, tiny_model, rows, monkeypatch):
    overflow_at(monkeypatch, {1, 2})
    seen = []
    first = in_fp16(tmp_path / "run", tiny_model, rows)
    first.fit(seen.append, should_stop=lambda: len(seen) >= 3)
    file = first.directory.last_checkpoint() / "loss_scale.json"
    state = json.loads(file.read_text())
    assert state["scale"] == LARGEST_SCALE / 4
    scales = []
    real = LossScale.restore
    monkeypatch.setattr(
        LossScale, "restore", lambda self, one: scales.append(one) or real(self, one)
    )
    assert in_fp16(tmp_path / "run", tiny_model, rows).fit().steps == 6
    assert scales == [state]


def test_a_gradient_that_no_scale_helps_fails_the_training(tmp_path, tiny_model, rows, monkeypatch):
    monkeypatch.setattr(loss_scale, "LARGEST_SCALE", 4.0)
    overflow_at(monkeypatch, {1, 2, 3})
    training = in_fp16(tmp_path / "run", tiny_model, rows)
    with pytest.raises(RunFailed, match="gradient's norm became inf at step 3"):
        training.fit()
    assert not list_checkpoints(training.directory.checkpoints)


def test_without_a_scale_the_first_overflow_fails_and_changes_nothing(
    tmp_path, tiny_model, rows, monkeypatch
):
    overflow_at(monkeypatch, {3})
    training = Training(tmp_path / "run", tiny_model, rows, engine="fused")
    with pytest.raises(RunFailed, match="gradient's norm became inf at step 3"):
        training.fit()
    weights = [one for one in training.loaded.model.parameters() if one.requires_grad]
    assert all(weight.isfinite().all() for weight in weights)
    newest, *_ = list_checkpoints(training.directory.checkpoints)
    assert newest.name == "checkpoint-2"


def test_the_scale_halves_at_an_overflow_and_grows_again():
    scale, finite, infinite = LossScale(CPU), torch.tensor(True), torch.tensor(False)
    for _ in range(2 * GROWTH_STEPS):
        scale.update(finite)
    assert scale.value == LARGEST_SCALE
    scale.update(infinite)
    scale.update(infinite)
    assert (scale.value, scale.inverse) == (LARGEST_SCALE / 4, 4 / LARGEST_SCALE)
    for _ in range(GROWTH_STEPS):
        scale.update(finite)
    assert scale.value == LARGEST_SCALE / 2


def test_a_first_step_that_overflows_leaves_no_trace():
    weights = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizers = [torch.optim.AdamW([weight], lr=0.1) for weight in weights]
    guard = OptimizerGuard(optimizers[0])
    weights[0].grad, guard.finite = torch.full((3,), float("nan")), torch.tensor(False)
    optimizers[0].step()
    guard.forget_step()
    guard.finite = torch.tensor(True)
    for weight, optimizer in zip(weights, optimizers, strict=True):
        weight.grad = torch.tensor([1.0, -2.0, 3.0])
        optimizer.step()
        optimizer.step()
    assert torch.equal(*weights)


def test_a_count_on_the_host_is_taken_back(monkeypatch):
    """As of optimizers that count their steps in Python, whatever the device does."""
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    guard = OptimizerGuard(optimizer)
    weight.grad, guard.finite = torch.ones(3), torch.tensor(True)
    optimizer.step()
    optimizer.state[weight]["step"] = 7
    kept, momentum = weight.detach().clone(), optimizer.state[weight]["momentum_buffer"].clone()
    weight.grad, guard.finite = torch.full((3,), float("nan")), torch.tensor(False)
    optimizer.step()
    optimizer.state[weight]["step"] = 8
    guard.forget_step()
    assert torch.equal(weight, kept)
    assert torch.equal(optimizer.state[weight]["momentum_buffer"], momentum)
    assert optimizer.state[weight]["step"] == 7


class Scaler:
    def __init__(self, scale):
        self.scale = scale

    def get_scale(self):
        return self.scale


@pytest.mark.parametrize(("scale", "skipped"), [(512.0, True), (0.5, False)])
def test_a_step_that_the_library_skips_is_recorded_alike(scale, skipped):
    from medcot.training.trainers.choose import _has_loss_scale

    trainer = SimpleNamespace(accelerator=SimpleNamespace(scaler=Scaler(scale)))
    assert _has_loss_scale(trainer) is skipped
    assert not _has_loss_scale(SimpleNamespace(accelerator=SimpleNamespace(scaler=None)))


def record(recorder, losses, first=1):
    for step, loss in enumerate(losses, first):
        logs = {"loss": loss, "grad_norm": 1.0, "learning_rate": 1e-3}
        recorder.step_ended(step, 10, logs, 0.1, scaled=False)


def make_recorder(directory):
    config = make_config("demo", {})
    unvalidated = Validation(None, (), config, 100, lambda rows: None, shared_out=False)
    return Recorder(100, 0, directory, lambda event: None, lambda: False, unvalidated)


def test_a_loss_that_explodes_stops_at_the_last_good_checkpoint(tmp_path, tiny_model, rows):
    training = Training(tmp_path / "run", tiny_model, rows)
    for step in (8, 13, 14):
        (training.directory.checkpoints / f"checkpoint-{step}").mkdir(parents=True)
    recorder = make_recorder(training.directory)
    record(recorder, [2.0, 1.8, 2.2] * 4)
    with pytest.raises(RunFailed, match="loss exploded: 7 or more in the 3 steps up to 15"):
        record(recorder, [7.0, 9.0, 8.0], 13)
    [left] = list_checkpoints(training.directory.checkpoints)
    assert left.name == "checkpoint-8"


def test_a_batch_of_hard_rows_is_no_explosion(tmp_path, tiny_model, rows):
    training = Training(tmp_path / "run", tiny_model, rows)
    recorder = make_recorder(training.directory)
    record(recorder, [2.0] * 9 + [7.0] * (EXPLODED_STEPS - 1) + [2.0] * 3 + [6.5] * 2)
    assert recorder.step == 16
