"""Validation while training: what is kept, when it stops, and that nothing else changes."""

import json

import pytest
from safetensors.torch import load_file

from medcot.config.presets import make_config
from medcot.inference.loglikelihood import score_rows
from medcot.records import TokenLoss
from medcot.runs.checkpoints import list_checkpoints
from medcot.training.fit import ValidationRows, fit
from tests.support.training_run import Training, make_rows


@pytest.fixture(scope="module")
def rows(tiny_model):
    return make_rows(tiny_model)


class Validated(Training):
    """A training on the first ten rows, validated on the last two after every other step."""

    def __init__(self, folder, model, rows, losses=(), **changes):
        super().__init__(folder, model, rows[:10], validation_steps=2, **changes)
        self.validation, self.planted, self.scored = rows[10:], list(losses), []

    def score(self, loaded, rows):
        """Score the rows, or return the next of the planted losses."""
        self.scored.append([row.id for row in rows])
        if not self.planted:
            return score_rows(loaded, rows)
        past = [row.get("validation_loss") for row in self.directory.rows(self.directory.events)]
        return TokenLoss(self.planted[sum(loss is not None for loss in past)], 1)

    def fit(self, on_event=lambda event: None, should_stop=lambda: False, plan=None):
        return fit(
            self.loaded, self.rows, self.config, plan or self.plan, self.directory,
            on_event, should_stop, ValidationRows(self.validation, self.score),
        )  # fmt: skip

    def validations(self):
        found = self.directory.rows(self.directory.events)
        return {row["step"]: row["validation_loss"] for row in found if row["validation_loss"]}

    def adapter(self):
        return (self.directory.adapter / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def last(tmp_path_factory, tiny_model, rows):
    """A training whose planted losses rise, but which keeps the last step."""
    training = Validated(
        tmp_path_factory.mktemp("last") / "run", tiny_model, rows, [2.0, 1.0, 3.0], keep="last"
    )
    return training, training.fit()


@pytest.fixture(scope="module")
def best(tmp_path_factory, tiny_model, rows):
    """The same training, which keeps the best."""
    training = Validated(tmp_path_factory.mktemp("best") / "run", tiny_model, rows, [2.0, 1.0, 3.0])
    return training, training.fit()


def test_validation_rows_alone_are_scored_and_are_in_the_events(best, rows):
    training, result = best
    assert training.validations() == {2: 2.0, 4: 1.0, 6: 3.0}
    assert training.scored == [[row.id for row in rows[10:]]] * 3
    assert result.validation_rows == 2


def test_the_adapter_of_the_lowest_validation_loss_is_kept(best, last):
    (best_training, kept), (last_training, ended) = best, last
    assert (kept.kept_step, kept.steps, ended.kept_step) == (4, 6, 6)
    saved = {one.name: one for one in list_checkpoints(best_training.directory.checkpoints)}
    as_it_was = load_file(saved["checkpoint-4"] / "adapter_model.safetensors")
    adapter = load_file(best_training.directory.adapter / "adapter_model.safetensors")
    assert adapter.keys() == as_it_was.keys()
    assert all(adapter[name].equal(as_it_was[name]) for name in adapter)
    assert best_training.adapter() != last_training.adapter()
    assert best_training.losses() == last_training.losses()


@pytest.mark.parametrize("engine", ["transformers", "fused"])
def test_validation_changes_no_step_of_the_training(tmp_path, tiny_model, rows, engine):
    plain = Training(tmp_path / "plain", tiny_model, rows[:10], engine=engine)
    plain.fit()
    validated = Validated(tmp_path / "run", tiny_model, rows, engine=engine, keep="last")
    validated.fit()
    assert validated.losses() == plain.losses()
    found = list(validated.validations().values())
    now = score_rows(validated.loaded, validated.validation)
    assert found[-1] == pytest.approx(now.mean, rel=1e-4)
    assert found[-1] < found[0]


def test_a_resumed_training_keeps_the_best_of_before(best, tmp_path, tiny_model, rows):
    seen = []
    first = Validated(tmp_path / "run", tiny_model, rows, [2.0, 1.0, 3.0])
    assert first.fit(seen.append, should_stop=lambda: len(seen) >= 4).cancelled
    second = Validated(tmp_path / "run", tiny_model, rows, [2.0, 1.0, 3.0])
    result = second.fit()
    assert (result.kept_step, len(second.scored)) == (4, 1)
    assert second.adapter() == best[0].adapter()


class StoppedWhileValidating(Validated):
    """Asked to stop as soon as its validation number ``stopped`` begins."""

    stopped = 0

    def score(self, loaded, rows):
        self.stopped -= 1
        return super().score(loaded, rows)

    def fit(self, **_):
        return super().fit(should_stop=lambda: self.stopped == 0)


@pytest.mark.parametrize("number", [2, 3], ids=["in the middle", "after the last step"])
def test_a_stop_within_a_validation_is_heard_and_loses_nothing(tmp_path, tiny_model, rows, number):
    whole = Validated(tmp_path / "whole", tiny_model, rows)
    whole.fit()
    first = StoppedWhileValidating(tmp_path / "run", tiny_model, rows)
    first.stopped = number
    result = first.fit()
    # Also after the last step: the best adapter is not known yet.
    assert (result.steps, result.cancelled) == (2 * number, True)
    assert list(first.validations()) == [2, 4, 6][: number - 1]
    second = Validated(tmp_path / "run", tiny_model, rows)
    second.fit()
    assert second.validations() == whole.validations()
    assert second.losses() == whole.losses()
    assert second.adapter() == whole.adapter()


@pytest.mark.parametrize("engine", ["transformers", "fused"])
def test_a_validation_that_is_missing_after_the_last_step_is_made_up(
    tmp_path, tiny_model, rows, engine
):
    first = Validated(tmp_path / "run", tiny_model, rows, engine=engine)
    first.fit()
    known, adapter = first.validations(), first.adapter()
    events = list(first.directory.rows(first.directory.events))
    assert events[-1].pop("validation_loss") == known[max(known)]
    text = "".join(json.dumps(event) + "\n" for event in events)
    first.directory.events.write_text(text, encoding="utf-8")
    second = Validated(tmp_path / "run", tiny_model, rows, engine=engine)
    told = []
    second.fit(told.append)
    assert [(one.step, one.validation_loss) for one in told] == [(max(known), known[max(known)])]
    assert second.validations() == pytest.approx(known, rel=1e-6)
    assert second.adapter() == adapter


def test_patience_ends_the_training_and_a_resumed_one_does_no_further_step(
    tmp_path, tiny_model, rows
):
    losses = [1.0, 2.0, 1.5, 0.5, 0.5]
    first = Validated(tmp_path / "run", tiny_model, rows, losses, steps=10, patience=2)
    result = first.fit()
    assert (result.stopped_early, result.cancelled) == (True, False)
    assert (result.steps, result.kept_step) == (6, 2)
    again = Validated(tmp_path / "run", tiny_model, rows, losses, steps=10, patience=2)
    assert again.fit().steps == 6
    assert len(again.losses()) == 6
    assert again.adapter() == first.adapter()


def test_a_training_that_ended_within_an_epoch_is_not_trained_further(tmp_path, tiny_model, rows):
    # Five steps of four rows are an epoch and two thirds of the next.
    first = Training(tmp_path / "run", tiny_model, rows, steps=5)
    first.fit()
    kept = (first.directory.adapter / "adapter_model.safetensors").read_bytes()
    again = Training(tmp_path / "run", tiny_model, rows, steps=5)
    assert again.fit().steps == 5
    assert len(again.losses()) == 5
    assert (again.directory.adapter / "adapter_model.safetensors").read_bytes() == kept


@pytest.mark.parametrize(
    ("steps", "rows", "batch", "every"), [(14, 5, 4, 5), (60, 32, 8, 16), (1000, 32, 8, 100)]
)
def test_validations_are_as_frequent_as_is_cheap(steps, rows, batch, every):
    config = make_config("demo", {"batch": batch})
    assert config.steps_between_validations(steps, rows) == every
