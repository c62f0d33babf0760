"""A study: arms on the same test rows, one of them picked by validation, each finished once."""

import json

import numpy as np
import pytest

from medcot.cli.study import describe_price, price_study, resolve_study
from medcot.config.presets import make_config
from medcot.errors import Cancelled, InputError, RunFailed
from medcot.evaluation.interface import ScoredRow
from medcot.evaluation.judge import check_judge
from medcot.hardware.machine import named_machine
from medcot.listener import Listener
from medcot.pipeline import study as pipeline
from medcot.pipeline import study_progress
from medcot.pipeline.study import list_arms, parse_vary, run_study
from medcot.reporting.study import ArmResult, analyse_study, fit_learning_curve, state_study
from medcot.runs.directory import RunDirectory
from tests.support.short_runs import SHORT, write_rows

optuna = pytest.importorskip("optuna")
VARY = {"rank": [2, 4], "samples": [4, 6]}


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_model):
    rows = write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl")
    changes = {"model": str(tiny_model), "dataset": str(rows), "steps": 2}
    return make_config("demo", SHORT | changes)


class Stopping(Listener):
    """Asks to stop after a number of optimizer steps."""

    def __init__(self, steps):
        self.left, self.arms, self.states = steps, [], []

    def say(self, line):
        if getattr(line, "code", "") == "study_arm_begins":
            self.arms.append(line.values["arm"])

    def event(self, event):
        self.left -= 1

    def study(self, state):
        self.states.append(state)

    def should_stop(self):
        return self.left <= 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory, config):
    """A study that is stopped within its second arm, and continued while another has the third."""
    folder = tmp_path_factory.mktemp("study") / "study"
    first = Stopping(3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_progress, "REFRESH_S", 0.0)
        with pytest.raises(Cancelled):
            run_study(config, VARY, folder, first)
    second = Stopping(1000)
    return folder, run_study(config, VARY, folder, second), (first, second)


def test_a_stopped_study_is_continued_and_each_arm_is_finished_once(whole):
    folder, study, (first, second) = whole
    names = [arm.name for arm in study.arms]
    assert len(names) == 4
    assert first.arms == names[:2]
    assert second.arms == names[1:]
    books = optuna.load_study(study_name="medcot", storage=f"sqlite:///{folder / 'study.db'}")
    assert [trial.user_attrs["arm"] for trial in books.trials] == names
    assert {trial.state.name for trial in books.trials} == {"COMPLETE"}
    assert [trial.value for trial in books.trials] == [arm.mean for arm in study.arms]
    assert books.best_trial.params == next(a.values for a in study.arms if a.name == study.chosen)


def test_the_untuned_model_is_scored_once_and_the_test_rows_are_told_of_one_arm(whole):
    folder, study, _ = whole
    before = {
        (folder / "arms" / arm.name / "evaluation" / "before.jsonl").read_bytes()
        for arm in study.arms
    }
    assert len(before) == 1
    text = (folder / "study.md").read_text()
    assert text.count("test loss") == 1
    assert study.nll.level == pytest.approx(1 - 0.05 / 4)
    assert json.loads((folder / "study_report.json").read_text())["chosen"] == study.chosen


def test_a_study_tells_how_far_its_arms_are_and_how_long_the_rest_takes(whole):
    _, study, (first, second) = whole
    for listener, done in ((first, [0, 1]), (second, [1, 2, 3, 4])):
        assert sorted({state.done for state in listener.states}) == done
        assert all(
            list(state.arms) == [arm.name for arm in study.arms] for state in listener.states
        )
    stopped = first.states[-1].arms[study.arms[1].name]
    assert [(one.state, one.step, one.steps) for one in stopped] == [("training", 1, 2)]
    last = second.states[-1]
    assert [one.loss for found in last.arms.values() for one in found] == [
        arm.mean for arm in study.arms
    ]
    assert last.seconds_left == 0
    assert all(state.seconds_left > 0 for state in second.states if 1 < state.done < 4)


def test_an_arm_counts_the_rows_that_it_saw(whole, config):
    arms = list_arms(config, VARY)
    seen = [pipeline._read_arm(whole[0], arm).rows for arm in arms]
    assert seen == [min(arm.config.samples, config.steps * config.batch) for arm in arms]


def test_an_arm_that_another_process_works_on_is_left_to_it(config, tmp_path, monkeypatch):
    folder = tmp_path / "study"
    arms = list_arms(config, {"rank": [2, 4]})
    held = RunDirectory(folder / "arms" / arms[0].name)
    worked = []

    def work(arm_config, directory, listener, *, resume, scores_before):
        worked.append(arm_config.rank)
        raise Cancelled

    monkeypatch.setattr(pipeline, "run", work)
    pipeline._begin(config, {"rank": [2, 4]}, folder)
    held.path.mkdir(parents=True)
    held.lock.take()
    with pytest.raises(Cancelled):
        run_study(config, {"rank": [2, 4]}, folder)
    assert worked == [4]
    held.lock.release()


def test_an_arm_that_fails_costs_no_other_arm(config, tmp_path, monkeypatch):
    tried = []

    def fail(arm_config, directory, listener, *, resume, scores_before):
        tried.append(arm_config.rank)
        directory.lock.release()
        raise RunFailed("training", "no room.", "Buy some.")

    monkeypatch.setattr(pipeline, "run", fail)
    with pytest.raises(RunFailed, match=r"rank-2, rank-4; .*start the same command again"):
        run_study(config, {"rank": [2, 4]}, tmp_path / "study")
    assert tried == [2, 4]


def test_a_judge_is_asked_in_no_arm(config):
    judged = config.model_copy(update={"judge_url": "http://127.0.0.1:9/v1", "judge_model": "m"})
    for arm in list_arms(judged, {"rank": [2, 4]}):
        check_judge(arm.config)
        assert not arm.config.judge_url


def test_a_damaged_file_of_books_is_named(config, tmp_path):
    folder = tmp_path / "study"
    pipeline._begin(config, {"rank": [2, 4]}, folder)
    (folder / "study.db").write_bytes(b"no database" * 1000)
    with pytest.raises(InputError, match=r"study\.db: Optuna cannot use it .*delete it"):
        run_study(config, {"rank": [2, 4]}, folder)


def test_a_folder_that_is_a_file_or_an_empty_study_is_named(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--out .*file: File exists; name a folder"):
        run_study(config, {"rank": [2, 4]}, tmp_path / "file")
    (tmp_path / "study.json").write_text("{}")
    with pytest.raises(InputError, match=r"study\.json: config is missing"):
        pipeline.read_study(tmp_path)


def test_without_validation_rows_nothing_is_begun(config, tmp_path):
    unvalidated = config.model_copy(update={"validation_samples": 0})
    with pytest.raises(InputError, match="--validation-samples 0"):
        run_study(unvalidated, {"rank": [2, 4]}, tmp_path / "study")
    assert not (tmp_path / "study").exists()


@pytest.fixture(scope="module")
def thoughts(tmp_path_factory, config):
    """Thoughts kept, left out and shuffled."""
    folder = tmp_path_factory.mktemp("thoughts") / "study"
    vary = parse_vary(["thought=none,kept,shuffled"])
    config = config.model_copy(update={"steps": 1, "mcq": (), "test_samples": 5})
    return folder, run_study(config, vary, folder), list_arms(config, vary)


def test_arms_with_other_thoughts_are_compared_by_the_same_tokens_of_the_same_rows(thoughts):
    folder, study, arms = thoughts
    assert study.chosen is None
    assert [(one.arm, one.reference) for one in study.contrasts] == [
        ("thought-none", "thought-kept"), ("thought-shuffled", "thought-kept"),
    ]  # fmt: skip
    found = {arm.name: pipeline._read_arm(folder, arm) for arm in arms}
    tokens = {
        tuple(sorted((row.id, row.completion_tokens) for row in side if row.kind == "case"))
        for arm in found.values()
        for side in (arm.before, *arm.after)
    }
    assert len(tokens) == 1
    means = {arm.name: arm.mean for arm in study.arms}
    for one in study.contrasts:
        assert one.nll.difference == pytest.approx(means[one.arm] - means[one.reference])
        assert one.nll.level == pytest.approx(1 - 0.05 / 2)
    books = optuna.load_study(study_name="medcot", storage=f"sqlite:///{folder / 'study.db'}")
    assert [trial.value for trial in books.trials] == [arm.mean for arm in study.arms]
    text = (folder / "study.md").read_text()
    assert "No arm was chosen" in text
    assert "thought-none against thought-kept: the loss of the answers differs by" in text


def test_the_untuned_model_is_scored_once_for_the_arms_that_ask_it_the_same(thoughts):
    folder, _, arms = thoughts
    before = {arm.values["thought"]: pipeline._read_rows(
        RunDirectory(folder / "arms" / arm.name), "before") for arm in arms}  # fmt: skip
    assert before["kept"] == before["shuffled"]
    assert before["kept"] != before["none"]
    split = {(folder / "arms" / arm.name / "split.json").read_bytes() for arm in arms}
    assert len(split) == 1


def test_a_folder_of_another_study_is_refused(whole, config):
    with pytest.raises(InputError, match="other options"):
        run_study(config, {"rank": [2, 8]}, whole[0])


def test_a_study_is_continued_with_the_options_that_it_has(whole, config):
    folder, place = whole[0], {"out": str(whole[0])}
    assert resolve_study(None, [], dict(place)) == (config, VARY, folder, False)
    same, other = place | {"steps": "2"}, place | {"seeds": "3"}
    assert resolve_study(None, [], same)[0] == config
    with pytest.raises(InputError, match=r"^--seeds 3: the study in .* has 1; "):
        resolve_study(None, [], other)


@pytest.mark.parametrize(
    ("given", "what"),
    [("rnak=4,16", "rank"), ("rank=4", "two different"), ("rank=4,4", "two different"),
     ("thought=kept,nothing", "expected two or more of kept, none, shuffled, another"),
     ("model=a,b", "expected one of"), ("test_samples=4,8", "expected one of")],
)  # fmt: skip
def test_what_arms_may_not_differ_in_is_refused(given, what):
    with pytest.raises(InputError, match=what):
        parse_vary([given])


def test_a_value_counts_as_what_the_config_makes_of_it():
    with pytest.raises(InputError, match=r"--vary rank: found '4.0'; write it as 4"):
        list_arms(make_config("demo"), parse_vary(["rank=4,4.0"]))


def test_a_field_varies_once():
    with pytest.raises(InputError, match="learning_rate is given twice"):
        parse_vary(["learning_rate=1e-3,1e-4", "learning-rate=1e-5,1e-6"])


def test_thoughts_vary_alone():
    with pytest.raises(InputError, match="rank varies too; let thought vary alone"):
        parse_vary(["thought=kept,none", "rank=4,16"])


def test_a_file_and_options_make_a_study(tmp_path):
    file = tmp_path / "study.toml"
    file.write_text('preset = "demo"\nseeds = 2\n[vary]\nrank = [4, 16]\n')
    config, vary, folder, _ = resolve_study(str(file), ["learning-rate=1e-4,1e-3"], {"out": "here"})
    assert (config.seeds, vary) == (2, {"rank": [4, 16], "learning_rate": [1e-4, 1e-3]})
    assert str(folder) == "here"
    assert len(list_arms(config, vary)) == 4
    prices = price_study(config, ["rank=4,16"], named_machine("H100"))
    lines = list(describe_price(prices, config.seeds))
    assert len(lines) == 3
    assert lines[-1].startswith("2 arms x 2 seeds")


def test_options_take_precedence_over_the_environment_and_that_over_the_file(tmp_path, monkeypatch):
    file = tmp_path / "study.toml"
    file.write_text('preset = "demo"\nseeds = 2\nsteps = 5\nbatch = 4\n[vary]\nrank = [4, 16]\n')
    monkeypatch.setenv("MEDCOT_SEEDS", "3")
    monkeypatch.setenv("MEDCOT_BATCH", "8")
    config, vary, _, _ = resolve_study(str(file), ["rank=8,32"], {"batch": "1", "out": "here"})
    assert (config.seeds, config.steps, config.batch) == (3, 5, 1)
    assert vary == {"rank": [8, 32]}
    _, vary, _, _ = resolve_study(str(file), ["keep=best,last", "rank=8,32"], {"out": "here"})
    assert list(vary.items()) == [("rank", [8, 32]), ("keep", ["best", "last"])]
    with pytest.raises(InputError, match="give one"):
        resolve_study(str(file), [], {"config_file": str(file)})
    file.write_text("[vary]\nrank = [4, 16]\n[other]\n")
    with pytest.raises(InputError, match=rf"^{file}: unknown key 'other'"):
        resolve_study(str(file), [], {})


def test_the_untuned_model_is_priced_once_for_each_way_of_asking_it(config):
    config = config.model_copy(update={"test_samples": 1000})
    prices = price_study(config, ["thought=kept,none,shuffled"], named_machine("H100"))
    kept, none, shuffled = prices.values()
    assert shuffled < kept
    assert none < kept


def rows_of(losses):
    return [
        ScoredRow("case", "", str(number), "", nll=loss, nll_sum=100 * loss, completion_tokens=100)
        for number, loss in enumerate(losses)
    ]


def test_trainings_of_two_arms_with_the_same_seed_are_paired():
    config, rng = make_config("demo"), np.random.default_rng(1)
    before, own = rows_of(np.full(24, 3.0)), [0.0, 0.4, 0.8]

    def arm(name, better):
        after = [rows_of(2.5 + seed - better + 0.01 * rng.normal(size=24)) for seed in own]
        losses = tuple(float(np.mean([row.nll for row in side])) for side in after)
        return ArmResult(f"thought-{name}", {"thought": name}, losses, before, after, 64)

    arms = [arm("none", 0.0), arm("kept", 0.1), arm("another", 0.1)]
    study = analyse_study(config, {"thought": ["none", "kept", "another"]}, arms)
    none, another = study.contrasts
    assert (none.verdict, another.verdict) == ("worse", "no evidence")
    assert none.nll.difference == pytest.approx(0.1, abs=0.01)
    said = [str(one) for one in state_study(study)]
    assert said[0].endswith("): higher.")
    assert said[1].endswith("): no evidence of a difference.")


def test_choosing_among_arms_without_an_effect_is_seldom_an_improvement():
    """``bench/verdicts.py --only study`` does this a thousand times."""
    config, called = make_config("demo"), 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        before = rows_of(np.full(24, 3.0))
        arms = []
        for number in range(8):
            # Seeds that are good on validation rows are good on test rows.
            own = 0.05 * rng.normal(size=3)
            changes = own[:, None] + 0.1 * rng.normal(size=24) + 0.02 * rng.normal(size=(3, 24))
            after = [rows_of(3.0 + change) for change in changes]
            losses = tuple(2.0 + own + 0.01 * rng.normal(size=3))
            arms.append(ArmResult(f"arm-{number}", {"rank": number}, losses, before, after, 64))
        called += analyse_study(config, {"rank": range(8)}, arms).nll_verdict == "improved"
    assert called <= 3


def test_a_learning_curve_says_what_more_rows_buy():
    rng = np.random.default_rng(1)
    losses = {
        size: list(3 - 0.1 * np.log(size) + 0.001 * rng.normal(size=3)) for size in (100, 200, 400)
    }
    curve = fit_learning_curve(losses)
    assert curve.gain == pytest.approx(0.1 * np.log(1400 / 400), abs=2 * curve.half_width)
    assert 0 < curve.half_width < 0.02
    assert fit_learning_curve({100: [3.0]}) is None


def test_a_learning_curve_goes_by_the_rows_that_there_were():
    config, rows = make_config("demo"), rows_of([2.0, 3.0])
    given = {100: 100, 200: 200, 400: 400, 10_000: 400}

    def curve(sizes):
        arms = [
            ArmResult(f"{asked}", {"samples": asked}, (3 - 0.1 * np.log(there),) * 2, rows,
                      [rows, rows], there)
            for asked, there in sizes.items()
        ]  # fmt: skip
        return analyse_study(config, {"samples": list(sizes)}, arms).curve

    found = curve(given)
    assert found.largest == 400
    assert found.gain == pytest.approx(0.1 * np.log(1400 / 400))
    del given[100]
    assert curve(given) is None
