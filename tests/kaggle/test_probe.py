"""The probe: a free CPU session that brings home what Kaggle's image is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medcot.errors import RunFailed
from medcot.kaggle.client import probe
from medcot.kaggle.client.account import Account
from medcot.kaggle.client.build import KernelOptions
from medcot.kaggle.client.orchestrate import KaggleRun
from medcot.kaggle.client.push_state import training_pushes
from medcot.kaggle.session import install
from medcot.kaggle.session import probe as session_probe
from medcot.runs.directory import RunDirectory
from tests.support.kaggle_scripts import CONFIG, Lines
from tests.support.kaggle_server import KaggleServer
from tests.support.kaggle_session import Session

pytest_plugins = ["tests.support.kaggle_fixtures"]
NO_INTERNET = {
    "PIP_CONSTRAINT": "/no/such/file",  # pip ends at once
    "http_proxy": "http://127.0.0.1:9",
    "https_proxy": "http://127.0.0.1:9",
}
GOOD = {
    "at": "2026-11-27",
    "python": "3.12.11",
    "build_date": "20260812-1",
    "git_commit": "abc",
    "hub_mb_per_s": None,
    "packages": {"torch": "2.10.0+cu128", "numpy": "2.0.2", "new-thing": "1.0"},
}


def test_the_probe_brings_the_image_home_and_one_call_records_it(
    kaggle: KaggleServer, account: Account, run: RunDirectory, lines: Lines, tmp_path: Path
) -> None:
    """The real client against the stand-in; the session is the pushed script, in a process."""
    kaggle.start = Session.run
    kaggle.session_options = {"environ": NO_INTERNET}
    request = KaggleRun(account, CONFIG, run, KernelOptions(), lines, interval_s=0.1)
    facts, answer = probe.probe_image(request)
    [body] = kaggle.calls_of("SaveKernel")
    assert not body.get("enableGpu")
    assert training_pushes(run) == []
    assert facts.packages["torch"] == install.installed_version("torch")
    assert facts.packages["torchao"] == "0.10.0"
    text = "\n".join(answer)
    assert "HUGGINGFACE_TOKEN: not attached" in text
    assert "internet: pypi.org no answer" in text
    assert "internet: huggingface.co no answer" in text
    assert "GPUs in this session: none" in text
    assert "packages differ from kaggle/image.json" in text
    # What this machine lacks cannot be had without an index, and the probe still ends well.
    assert "fused run: cannot be installed: ERROR: " in text
    image = tmp_path / "image.json"
    probe.save_image(facts, image)
    saved = json.loads(image.read_text(encoding="utf-8"))
    assert saved["packages"] == facts.packages
    assert saved["python"] == [".".join(facts.python.split(".")[:2])]
    assert saved["hub_mb_per_s"] is None
    assert saved["sources"][0].startswith("python kaggle/push.py probe, 20")
    assert probe.compare(facts, image)[-1].startswith("0 of ")


def test_what_pip_would_add_is_told_for_both_kinds_of_run(
    tmp_path: Path, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.kaggle.session.test_main import machine

    wanted: list[list[str]] = []

    def plan(found: list[str], *_: object) -> list[str]:
        wanted.append(found)
        return ["trl==1.15.0", "torch==9"] if len(wanted) > 1 else ["trl==1.15.0"]

    monkeypatch.setattr(install, "plan_installation", plan)
    monkeypatch.setattr(session_probe, "_reaches", lambda url: True)
    monkeypatch.setattr(session_probe, "_measure_hub", lambda: 87.5)
    answer = session_probe.probe_image(tmp_path, tmp_path, "", machine(), lines)
    assert "internet: pypi.org answers" in answer
    assert "hub: 88 MB/s in one stream" in answer
    assert "fused run: pip would add or replace 1 packages and keeps torch" in answer
    assert "unsloth run: pip would add or replace 2 packages and would replace torch==9" in answer
    assert not [line for line in wanted[0] if "unsloth" in line]
    assert [line for line in wanted[1] if "unsloth" in line]


@pytest.mark.parametrize(
    "change",
    [
        {"packages": {"../x": "1"}}, {"packages": {"x": "1\n2"}}, {"packages": ["x"]},
        {"python": "4"}, {"at": "today"}, {"at": None},
    ],
)  # fmt: skip
def test_facts_that_are_none_are_refused(change: dict[str, object], tmp_path: Path) -> None:
    file = tmp_path / "probe.json"
    file.write_text(json.dumps(GOOD | change), encoding="utf-8")
    with pytest.raises(RunFailed, match="Probe again"):
        probe.read_facts(file)


def test_the_image_of_cpu_sessions_is_told_from_that_of_a_gpu(tmp_path: Path) -> None:
    file, recorded = tmp_path / "probe.json", tmp_path / "image.json"
    file.write_text(json.dumps(GOOD), encoding="utf-8")
    recorded.write_text(json.dumps({"packages": {"torch": "2.10.0+cu128", "numpy": "2.0.1"}}))
    facts = probe.read_facts(file)
    image, differing = probe.compare(facts, recorded)
    assert image == "image: Python 3.12.11, torch 2.10.0+cu128, numpy 2.0.2, 20260812-1, abc"
    assert differing == "2 of 3 packages differ from kaggle/image.json"
    packages = {**facts.packages, "torch": "2.10.0+cpu"}
    file.write_text(json.dumps(GOOD | {"packages": packages}), encoding="utf-8")
    assert "this is the image of CPU sessions" in probe.compare(probe.read_facts(file), file)[1]
