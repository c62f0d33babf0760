"""SIGINT and SIGTERM are heard within three seconds in every stage, and nothing is lost."""

import os
import signal
import time
from pathlib import Path

import pytest

from medcot.cli.exit_codes import ExitCode, exit_on_error
from medcot.cli.progress import TerminalListener, make_console
from medcot.config.presets import make_config
from medcot.engines import bundled_model
from medcot.inference import loglikelihood
from medcot.inference.continuous_batching import Decoder
from medcot.pipeline import prepare, report, run
from medcot.reporting import figures
from medcot.runs.directory import RunDirectory
from medcot.training.recorder import Recorder
from tests.support.short_runs import SHORT, write_rows

HEARD_S = 3.0


@pytest.fixture(scope="module")
def config(tiny_model, tmp_path_factory):
    rows = write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl")
    changes = {"steps": 4, "model": str(tiny_model), "dataset": str(rows)}
    return make_config("demo", SHORT | changes)


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """Drawing takes half of a short run's time, and nothing here is about it."""
    monkeypatch.setattr(figures, "can_draw", lambda: False)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "can_draw", lambda: False)
        return run.run(config, RunDirectory(tmp_path_factory.mktemp("runs") / "whole"))


def own_time():
    """Seconds on a clock that stands while this process waits for a core that others have."""
    try:
        waited = int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        waited = 0.0
    return time.monotonic() - waited


class Signals:
    """Sends a signal to this process once, and knows when."""

    def __init__(self, number):
        self.number, self.sent = number, None

    def send(self):
        if self.sent is None:
            self.sent = own_time()
            os.kill(os.getpid(), self.number)

    def send_and_hang(self, *_arguments, **_options):
        self.send()
        time.sleep(20 * HEARD_S)

    def before(self, function, *, slowly=False):
        def call(*arguments, **options):
            self.send()
            time.sleep(0.05 if slowly else 0)
            return function(*arguments, **options)

        return call


def carry_out(config, directory, signals, listener=None):
    """Run as the command line does; return after how many seconds the signal was heard."""
    shown = listener or TerminalListener(make_console(quiet=True))
    with pytest.raises(SystemExit) as ended, exit_on_error(), shown.live() as live:
        run.run(config, directory, live, resume=directory.exists())
    assert ended.value.code == ExitCode.INTERRUPTED
    return own_time() - signals.sent


def in_decoding(signals, patch):
    patch.setattr(Decoder, "_forward", signals.before(Decoder._forward, slowly=True))


def in_scoring(signals, patch):
    patch.setattr(loglikelihood, "_score_batch", signals.before(loglikelihood._score_batch))


class Signalling(TerminalListener):
    """Sends a signal once a step is recorded."""

    def __init__(self, signals):
        super().__init__(make_console(quiet=True))
        self.signals = signals

    def event(self, event):
        super().event(event)
        self.signals.send()


MOMENTS = {
    "while the data are loaded": lambda signals, patch: patch.setattr(
        prepare, "load_dataset", signals.send_and_hang
    ),
    "while the model is loaded": lambda signals, patch: patch.setattr(
        run.models, "load_base", signals.send_and_hang
    ),
    "between the tokens of an answer before": in_decoding,
    "between the batches of scoring before": in_scoring,
    "before the first step": lambda signals, patch: patch.setattr(
        Recorder, "step_begins", signals.send_and_hang
    ),
    "in a step": None,
    "between the tokens of an answer after": in_decoding,
    "between the batches of scoring after": in_scoring,
    "while the report is written": lambda signals, patch: patch.setattr(
        report, "build_report", signals.send_and_hang
    ),
}
"""In the order of a run. What one session has scored, the next one does not score again, so that
the same function is called in the next stage."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_one_run_that_is_interrupted_in_every_stage_loses_nothing(
    finished, config, tmp_path, number
):
    directory = RunDirectory(tmp_path / "run")
    for moment, slow_down in MOMENTS.items():
        signals = Signals(number)
        with pytest.MonkeyPatch.context() as patch:
            listener = None
            if slow_down is None:
                listener = Signalling(signals)
            else:
                slow_down(signals, patch)
            heard_s = carry_out(config, directory, signals, listener)
        assert heard_s < HEARD_S, moment
        assert not directory.lock.path.exists()
        if moment == "while the data are loaded":
            assert not directory.path.exists()
            continue
        assert directory.stage() == "cancelled", moment
        assert directory.reached == reached_at(moment), moment
        if slow_down is None:
            assert directory.last_checkpoint() is not None
    assert run.run(config, directory, resume=True) == finished


def reached_at(moment):
    last = moment.rpartition(" ")[2]
    others = {"loaded": "planned", "step": "training", "written": "report"}
    return others.get(last, last)


def test_while_the_bundled_model_is_converted(config, tmp_path, monkeypatch):
    from transformers import AutoTokenizer

    from medcot.config.schema import BUNDLED_MODEL

    if bundled_model.find_gguf() is None:
        pytest.skip("the bundled model's package is not installed")
    signals = Signals(signal.SIGTERM)
    monkeypatch.setenv("MEDCOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", signals.send_and_hang)
    bundled = config.model_copy(update={"model": BUNDLED_MODEL})
    assert carry_out(bundled, RunDirectory(tmp_path / "run"), signals) < HEARD_S
    assert not list((tmp_path / "cache").iterdir())


def test_between_the_tokens_of_a_padded_answer(config, tmp_path, monkeypatch):
    from medcot.inference import continuous_batching, generate

    signals = Signals(signal.SIGINT)
    monkeypatch.setattr(continuous_batching, "is_supported", lambda _: False)
    poll = signals.before(generate._poll_between_tokens)
    monkeypatch.setattr(generate, "_poll_between_tokens", poll)
    long = config.model_copy(update={"max_new_tokens": 1500})
    assert carry_out(long, RunDirectory(tmp_path / "run"), signals) < HEARD_S
