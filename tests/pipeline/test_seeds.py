"""Several trainings of one recipe: what they share, what is kept, and that they can be resumed."""

import json
import shutil

import pytest

from medcot.config.presets import make_config
from medcot.errors import Cancelled, InputError
from medcot.hardware.machine import available_cores
from medcot.listener import Listener
from medcot.pipeline import seeds as pipeline
from medcot.pipeline.run import evaluate_only, report_only, run, train_only
from medcot.reporting.storage import read_report
from medcot.runs.directory import RunDirectory
from medcot.training.tracking import Tracker
from tests.support.short_runs import SHORT, outcome, write_rows

SEEDS = 3


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_model):
    rows = write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl")
    changes = {"model": str(tiny_model), "dataset": str(rows), "seeds": SEEDS, "test_samples": 6}
    return make_config("demo", SHORT | changes)


class Stopped(Listener):
    """Asks to stop after so many steps or, as the other seeds are scored, after so many polls."""

    def __init__(self, events=10_000, polls=10_000):
        self.left, self.polls, self.name, self.lines, self.steps = events, polls, "", [], []

    def say(self, line):
        self.lines.append(line)

    def stage(self, name):
        self.name = name

    def event(self, event):
        self.left -= 1
        self.steps.append((event.step, event.steps))

    def should_stop(self):
        self.polls -= self.name == "seeds"
        return self.left <= 0 or self.polls <= 0


class Sink:
    """Keeps the steps that a tracker is sent."""

    name = "sink"

    def __init__(self):
        self.steps = []

    def log(self, values, step):
        self.steps.append(step)

    def finish(self, report, exit_code):
        pass


@pytest.fixture(scope="module")
def sink():
    return Sink()


@pytest.fixture(scope="module")
def whole(tmp_path_factory, config, sink):
    directory, listener = RunDirectory(tmp_path_factory.mktemp("seeds") / "run"), Stopped()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medcot.pipeline.run.start_tracking", lambda *_: Tracker([sink]))
        return directory, run(config, directory, listener), listener


def of_all(directory):
    """What no interruption may change: of the run, and of each of its trainings."""
    folders = [directory.path, *(directory.of_seed(n).path for n in range(1, SEEDS + 1))]
    return [outcome(folder) for folder in folders]


def adapter(directory):
    return (directory.adapter / "adapter_model.safetensors").read_bytes()


def test_each_seed_is_a_run_of_its_own_with_the_scores_before_in_common(whole, config):
    directory, _, listener = whole
    runs = [directory.of_seed(number) for number in range(1, SEEDS + 1)]
    assert [one.config().seed for one in runs] == [config.seed + n for n in range(SEEDS)]
    assert {one.stage() for one in runs} == {"done"}
    assert len({adapter(one) for one in runs}) == SEEDS
    assert len({one.evaluation("before").read_bytes() for one in runs}) == 1
    assert len({one.evaluation("after").read_bytes() for one in runs}) == SEEDS
    assert len({(one.path / "split.json").read_bytes() for one in runs}) == 1
    assert all(read_report(one.path) is not None for one in runs)
    begun = [one for one in listener.lines if getattr(one, "code", "") == "seed_begins"]
    assert [one.values["number"] for one in begun] == [1, 2, 3]


def test_a_seed_is_trained_as_if_it_were_alone(whole, config, tmp_path):
    directory, _, _ = whole
    alone = RunDirectory(tmp_path / "alone")
    train_only(config.model_copy(update={"seed": config.seed + 1, "seeds": 1}), alone, Listener())
    assert adapter(alone) == adapter(directory.of_seed(2))


def test_the_adapter_with_the_lowest_validation_loss_is_kept(whole):
    directory, report, _ = whole
    losses = {one.number: one.validation_loss for one in report.seeds.runs}
    kept = next(one.number for one in report.seeds.runs if one.kept)
    assert losses[kept] == min(losses.values())
    assert adapter(directory) == adapter(directory.of_seed(kept))
    assert directory.read_json("training.json")["kept_seed"] == kept
    assert directory.events.read_bytes() == directory.of_seed(kept).events.read_bytes()
    # Its own answers are in the run, its losses among those of the seeds.
    rows = {row["id"]: row for row in directory.rows(directory.evaluation("after"))}
    own = list(directory.of_seed(kept).rows(directory.of_seed(kept).evaluation("after")))
    assert all(rows[row["id"]]["nll"] == row["nll"] for row in own)
    assert any(row["output"] for row in rows.values())


def test_the_report_speaks_of_the_recipe(whole):
    directory, report, _ = whole
    seeds, own = report.seeds, [one.nll.difference for one in report.seeds.runs]
    assert seeds.nll.difference == pytest.approx(sum(own) / SEEDS)
    assert report.verdict.nll == seeds.nll.verdict("lower")
    counted = sum(one.nll_verdict == "improved" for one in seeds.runs)
    assert f"Improved in {counted} of 3 seeds; seeds differ by " in report.verdict.sentence
    assert report.detectable.nll == seeds.nll.detectable
    assert report.needed_rows.nll is None
    text = directory.report_markdown.read_text()
    assert ("and 3 seeds, a true difference of" in text) == (
        seeds.nll.detectable is not None or seeds.mcq.detectable is not None
    )
    assert "## Seeds" in text
    assert report.verdict.sentence.split(":")[0] in text
    assert text.count("| kept |") == 1
    again = report_only(directory, Listener())
    assert again == report == read_report(directory.path)


def test_the_report_of_one_seed_is_written_again(whole, tmp_path):
    shutil.copytree(whole[0].path, tmp_path / "run")
    seed = RunDirectory(tmp_path / "run").of_seed(2)
    before = read_report(seed.path)
    assert report_only(seed, Listener()).paired == before.paired


@pytest.mark.skipif(available_cores() < 2, reason="needs two cores")
def test_seeds_that_share_the_cores_give_the_same_bytes(whole, config, tmp_path, monkeypatch):
    """The other tests use one thread, so each process computes what they do."""
    monkeypatch.setattr("medcot.planning.speed_model.WORTH_A_PROCESS_S", 0.0)
    monkeypatch.delenv("OMP_NUM_THREADS")
    directory, listener = RunDirectory(tmp_path / "run"), Stopped()
    run(config, directory, listener)
    [told] = [one for one in listener.lines if getattr(one, "code", "") == "seeds_on_cores"]
    assert told.values == {"n": SEEDS, "places": SEEDS}
    assert of_all(directory) == of_all(whole[0])
    total = SEEDS * config.steps
    assert listener.steps == [(step, total) for step in range(1, total + 1)]


@pytest.mark.parametrize("stops", [{"events": 5}, {"polls": 1}])
def test_a_stopped_run_of_seeds_resumes_to_the_same_bytes(whole, config, tmp_path, stops):
    directory = RunDirectory(tmp_path / "run")
    with pytest.raises(Cancelled):
        run(config, directory, Stopped(**stops))
    run(config, RunDirectory(directory.path), resume=True)
    assert of_all(directory) == of_all(whole[0])


def test_a_launcher_with_several_processes_is_refused(config, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline.comm, "world_size", lambda: 2)
    with pytest.raises(InputError, match="without a launcher"):
        pipeline.require_one_process(config)
    pipeline.require_one_process(config.model_copy(update={"seeds": 1}))


def test_steps_are_counted_over_all_seeds(whole, sink):
    directory, _, listener = whole
    assert listener.steps == [(step, 9) for step in range(1, 10)]
    # W&B drops a step that does not come after the last one.
    assert sink.steps == list(range(1, 10))
    assert "seeds" not in json.loads((directory.of_seed(1).path / "report.json").read_text())


def test_a_set_added_later_is_in_the_config_of_every_seed(whole, config, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(whole[0].path, copy)
    directory, questions = RunDirectory(copy), tmp_path / "own.jsonl"
    row = {"question": "Which sign is it?", "options": {"A": "Fever", "B": "Rash"}, "answer": "B"}
    questions.write_text(json.dumps(row) + "\n")
    evaluate_only(directory, Listener(), mcq=(str(questions),))
    for one in (directory, *(directory.of_seed(number) for number in (1, 2, 3))):
        assert one.config().mcq == ("sample", str(questions))
        asked = [row["id"] for row in one.rows(one.evaluation("after")) if row["set"] == "own"]
        assert len(asked) == 1


def test_seeds_of_no_step_change_exactly_nothing(config, tmp_path):
    none = config.model_copy(update={"seeds": 2, "steps": 0, "mcq": (), "test_samples": 2})
    report = run(none, RunDirectory(tmp_path / "run"))
    assert (report.seeds.nll.difference, report.seeds.nll.deviation) == (0.0, 0.0)
