"""The smallest notebook: what it says when it is run as a script."""

import re
import subprocess
import sys

from medcot.runs.history import list_runs
from tests.support.fakes import make_tiny_model
from tests.support.paths import ROOT

MINIMAL = ROOT / "apps" / "minimal.py"
SMALL = "--samples 4 --steps 2 --batch 2 --test-samples 3 --max-new-tokens 4 --rank 4"


def run_script(*options, cwd):
    command = [sys.executable, str(MINIMAL), "--", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def test_as_a_script_it_trains_scores_the_same_rows_twice_and_gives_the_verdict(tmp_path):
    model = make_tiny_model(tmp_path / "model")
    done = run_script("--model", str(model), *SMALL.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "4 rows to train on, 3 to test on" in done.stdout
    assert re.search(r"^2 \d+\.\d+$", done.stdout, re.MULTILINE), "no line for the second step"
    assert re.search(r"nats per token on 3 rows; .* interval.*; p = [01]\.\d{4}", done.stdout)
    assert re.search(r"^Verdict: (improved|no evidence|worse)\.", done.stdout, re.MULTILINE)
    assert "not medical advice" in done.stdout
    (run,) = list_runs(tmp_path / "runs")
    assert run.has_adapter
    assert len(run.events) == 2


def test_a_wrong_option_is_one_line(tmp_path):
    done = run_script("--rnk", "3", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1


def test_it_passes_marimos_strict_check_and_stays_short():
    command = [sys.executable, "-m", "marimo", "check", "--strict", str(MINIMAL)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    code = MINIMAL.read_text(encoding="utf-8").split('"""')[2]
    lines = [line.strip() for line in code.splitlines()]
    assert len([line for line in lines if line and not line.startswith("#")]) <= 80
