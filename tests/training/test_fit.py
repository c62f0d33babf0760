import json
from dataclasses import replace

import pytest
import torch

from medcot.errors import RunFailed
from medcot.runs.checkpoints import find_damage, list_checkpoints
from medcot.training.fit import _with_less_memory
from tests.support.training_run import Training, make_rows


@pytest.fixture(scope="module")
def rows(tiny_model):
    return make_rows(tiny_model)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_model, rows):
    """An uninterrupted training, for the others to be compared with."""
    training = Training(tmp_path_factory.mktemp("whole") / "run", tiny_model, rows)
    events = []
    result = training.fit(events.append)
    return training, events, result


def test_every_step_is_an_event_on_disk_and_to_the_callback(whole):
    training, events, result = whole
    assert [event.step for event in events] == [1, 2, 3, 4, 5, 6]
    on_disk = list(training.directory.rows(training.directory.events))
    assert [row["loss"] for row in on_disk] == [event.loss for event in events]
    assert set(on_disk[0]) >= {
        "step", "loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second",
        "memory_gib", "eta_s",
    }  # fmt: skip
    assert result.steps == 6
    assert not result.cancelled


def test_event_tokens_count_the_tokens_of_the_rows(whole, rows):
    _, events, _ = whole
    # 6 steps of 4 rows are two passes over the 12 rows.
    assert events[-1].tokens == 2 * sum(len(row) for row in rows)


def test_training_lowers_the_loss(whole):
    _, events, _ = whole
    assert events[-1].loss < events[0].loss - 0.1


def test_the_saved_adapter_can_be_loaded_by_peft(whole):
    training, _, result = whole
    written = json.loads((training.directory.adapter / "adapter_config.json").read_text())
    config = training.config
    assert (written["r"], written["lora_alpha"]) == (config.rank, config.alpha)
    assert (training.directory.adapter / "adapter_model.safetensors").exists()
    assert result.trainable_parameters == training.plan.trainable_parameters


def test_a_second_run_with_the_same_seed_has_the_same_losses(whole, tmp_path, tiny_model, rows):
    again = Training(tmp_path / "run", tiny_model, rows)
    again.fit()
    assert again.losses() == whole[0].losses()


def test_another_seed_has_other_losses(whole, tmp_path, tiny_model, rows):
    other = Training(tmp_path / "run", tiny_model, rows, seed=1, steps=3)
    other.fit()
    assert other.losses()[1:] != whole[0].losses()[1:3]


def test_a_cancelled_training_resumes_to_the_same_losses(whole, tmp_path, tiny_model, rows):
    seen = []
    first = Training(tmp_path / "run", tiny_model, rows)
    result = first.fit(seen.append, should_stop=lambda: len(seen) >= 2)
    assert result.cancelled
    assert 0 < result.steps < 6
    assert first.directory.last_checkpoint() is not None
    second = Training(tmp_path / "run", tiny_model, rows)
    assert second.fit().steps == 6
    assert second.losses() == pytest.approx(whole[0].losses(), abs=1e-6)


def test_a_stop_within_a_step_abandons_it_and_loses_nothing_else(tmp_path, tiny_model, rows):
    uninterrupted = Training(tmp_path / "whole", tiny_model, rows, dropout=0.3)
    uninterrupted.fit()
    for polls in (1, 2, 3):  # Before either layer, and between the backward passes of the two.
        seen, asked = [], []

        def should_stop(seen=seen, asked=asked, polls=polls):
            asked.extend([1] * (len(seen) == 3))
            return len(asked) >= polls

        first = Training(tmp_path / f"run-{polls}", tiny_model, rows, dropout=0.3)
        result = first.fit(seen.append, should_stop)
        assert (result.cancelled, result.steps, len(asked)) == (True, 3, polls)
        assert find_damage(list_checkpoints(first.directory.checkpoints)[0]) == ""
        second = Training(tmp_path / f"run-{polls}", tiny_model, rows, dropout=0.3)
        assert second.fit().steps == 6
        assert second.losses() == uninterrupted.losses()


def test_no_steps_leave_the_model_exactly_as_it_was(tmp_path, tiny_model, rows):
    training = Training(tmp_path / "run", tiny_model, rows, steps=0)
    ids = torch.tensor([rows[0].prompt_ids])
    with torch.no_grad():
        with training.loaded.model.disable_adapter():
            base = training.loaded.model(input_ids=ids).logits
        assert training.fit().steps == 0
        assert torch.equal(training.loaded.model(input_ids=ids).logits, base)
    assert (training.directory.adapter / "adapter_model.safetensors").exists()


def test_out_of_memory_halves_the_rows_at_once_and_keeps_the_batch(
    whole, tmp_path, tiny_model, rows
):
    training = Training(tmp_path / "run", tiny_model, rows)
    calls = []

    def refuse_four_rows(module, arguments, keywords):
        count = len(keywords["input_ids"])
        calls.append(count)
        if count > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    training.loaded.model.register_forward_pre_hook(refuse_four_rows, with_kwargs=True)
    result = training.fit(plan=replace(training.plan, micro_batch=4, accumulation=1))
    assert (result.plan.micro_batch, result.plan.accumulation) == (2, 2)
    assert calls[0] == 4
    assert training.losses() == pytest.approx(whole[0].losses(), abs=1e-3)


def test_one_row_that_does_not_fit_fails_with_what_to_do(tmp_path, tiny_model, rows):
    training = Training(tmp_path / "run", tiny_model, rows)

    def refuse(module, arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    training.loaded.model.register_forward_pre_hook(refuse)
    with pytest.raises(RunFailed, match="--max-length"):
        training.fit(plan=replace(training.plan, micro_batch=1, accumulation=4))


def test_a_loss_that_is_no_number_stops_the_training(tmp_path, tiny_model, rows):
    training = Training(tmp_path / "run", tiny_model, rows)
    for name, parameter in training.loaded.model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(float("nan"))
    with pytest.raises(RunFailed, match="--learning-rate"):
        training.fit()


def test_truncated_rows_never_reach_the_training(tmp_path, tiny_model, rows):
    short = Training(tmp_path / "run", tiny_model, rows, max_length=64)
    with pytest.raises(RunFailed, match="template check"):
        short.fit()


def test_less_memory_never_changes_the_rows_per_step(whole):
    plan = replace(whole[0].plan, engine="transformers", micro_batch=6, accumulation=2)
    seen = []
    while plan.micro_batch > 1:
        plan = _with_less_memory(plan, layers=2)
        seen.append((plan.micro_batch, plan.accumulation))
    assert seen == [(3, 4), (1, 12)]
