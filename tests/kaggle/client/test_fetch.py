"""Fetching: resumed, checked, never outside the run directory, never half."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medcot.errors import RunFailed
from medcot.kaggle.client.account import Account
from medcot.kaggle.client.fetch import fetch, place_of
from medcot.kaggle.client.push_state import PushRecord
from medcot.runs.directory import RunDirectory
from tests.support.kaggle_scripts import CONFIG, Lines, end_session, idle_session
from tests.support.kaggle_server import KaggleServer
from tests.support.kaggle_session import Session

pytest_plugins = ["tests.support.kaggle_fixtures"]
REF = "ann/medcot-fine-tuning"
CHECKSUM = "a" * 64
BIG = bytes(range(256)) * 4096
FILES = {
    "run/report.json": b'{"verdict": {}}\n',
    "run/adapter/adapter_model.safetensors": BIG,
    "run/config.json": b'{"preset": "as the kernel had it"}',
    "tutorial.html": b"<html></html>",
    "session.json": b"{}",
}


@pytest.fixture
def session(kaggle: KaggleServer, run: RunDirectory) -> Session:
    run.create(CONFIG)
    kaggle.start = idle_session
    text = f'\nBUNDLE = "{CHECKSUM}"\n'
    kaggle.answer("SaveKernel", {"slug": REF, "newTitle": "medcot fine-tuning", "text": text})
    return kaggle.kernels[REF][0]


@pytest.fixture
def push() -> PushRecord:
    return PushRecord(REF, CHECKSUM, 1, "2026-01-01T00:00:00+00:00", 1)


def kept(run: RunDirectory) -> dict[str, bytes]:
    return {
        path.relative_to(run.path).as_posix(): path.read_bytes()
        for path in run.path.rglob("*")
        if path.is_file()
    }


def test_output_arrives_where_a_local_run_has_it(
    account: Account, session: Session, push: PushRecord, run: RunDirectory, lines: Lines
) -> None:
    own = (run.path / "config.json").read_bytes()
    end_session(session, FILES)
    fetched = fetch(account, push, run, lines)
    home = kept(run)
    assert home["report.json"] == FILES["run/report.json"]
    assert home["adapter/adapter_model.safetensors"] == BIG
    assert home["tutorial.html"] == b"<html></html>"
    assert home["config.json"] == own
    assert home["kaggle/v1.log"].decode() == session.text()
    assert fetched.manifest is not None
    assert fetched.manifest.outcome == "done"
    assert not list(run.path.rglob("*.part"))


def test_every_page_of_the_output_is_fetched(
    kaggle: KaggleServer,
    account: Account,
    session: Session,
    push: PushRecord,
    run: RunDirectory,
    lines: Lines,
) -> None:
    kaggle.page_size = 3
    many = {f"run/checkpoints/checkpoint-1/{number}.bin": b"%d" % number for number in range(10)}
    end_session(session, FILES | many)
    fetch(account, push, run, lines)
    assert len(kaggle.calls_of("ListKernelSessionOutput")) == 6
    assert all(kept(run)[name.removeprefix("run/")] == many[name] for name in many)


def test_a_cut_download_goes_on_where_it_ended(
    kaggle: KaggleServer,
    account: Account,
    session: Session,
    push: PushRecord,
    run: RunDirectory,
    lines: Lines,
) -> None:
    end_session(session, FILES)
    for size in (100_000, 200_000):
        kaggle.fail("download", cut_after=size, name_contains="adapter_model")
    kaggle.fail("download", status=503, times=2, name_contains="report")
    kaggle.fail("download", status=429, name_contains="tutorial", headers={"Retry-After": "1"})
    fetch(account, push, run, lines)
    assert (run.path / "adapter/adapter_model.safetensors").read_bytes() == BIG
    starts = [c["from"] for c in kaggle.calls_of("download") if "adapter_model" in c["name"]]
    assert starts == [0, 65_536, 65_536 + 196_608]


def test_a_fetch_that_was_killed_loads_nothing_twice(
    kaggle: KaggleServer,
    account: Account,
    session: Session,
    push: PushRecord,
    run: RunDirectory,
    lines: Lines,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    end_session(session, FILES)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("medcot.kaggle.client.fetch._move_to_places", die)
        with pytest.raises(KeyboardInterrupt):
            fetch(account, push, run, lines)
    assert not run.has("report.json")
    kaggle.calls.clear()
    fetch(account, push, run, lines)
    fetch(account, push, run, lines)
    assert {call["name"] for call in kaggle.calls_of("download")} <= {
        "manifest.json", "run/config.json",
    }  # fmt: skip
    assert run.has("report.json")


def test_a_file_with_a_wrong_checksum_changes_nothing(
    account: Account, session: Session, push: PushRecord, run: RunDirectory, lines: Lines
) -> None:
    end_session(session, FILES)
    session.extra["run/adapter/adapter_model.safetensors"] = BIG[:-1] + b"?"
    with pytest.raises(RunFailed, match=r"adapter_model\.safetensors.*wrong checksum"):
        fetch(account, push, run, lines)
    assert not run.has("report.json")
    session.extra["run/adapter/adapter_model.safetensors"] = BIG
    fetch(account, push, run, lines)
    assert run.has("report.json")


def test_a_file_that_changed_under_a_part_is_loaded_from_the_start(
    account: Account, session: Session, push: PushRecord, run: RunDirectory, lines: Lines
) -> None:
    end_session(session, FILES)
    part = run.path / "kaggle/incoming/v1/run/adapter/adapter_model.safetensors.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 5000)
    fetch(account, push, run, lines)
    assert (run.path / "adapter/adapter_model.safetensors").read_bytes() == BIG


def test_the_output_of_another_bundle_is_refused(
    account: Account, session: Session, run: RunDirectory, lines: Lines
) -> None:
    end_session(session, FILES)
    with pytest.raises(RunFailed, match="another bundle"):
        fetch(account, PushRecord(REF, "b" * 64, 1, "", 1), run, lines)
    assert not run.has("report.json")


def test_a_file_of_the_manifest_that_is_not_listed_is_missed(
    account: Account, session: Session, push: PushRecord, run: RunDirectory, lines: Lines
) -> None:
    end_session(session, FILES)
    del session.extra["tutorial.html"]
    with pytest.raises(RunFailed, match=r"does not list tutorial\.html.*fetch again"):
        fetch(account, push, run, lines)


def test_a_killed_session_gives_what_it_saved(
    account: Account, session: Session, push: PushRecord, run: RunDirectory, lines: Lines
) -> None:
    end_session(session, FILES, status="ERROR", manifest=False)
    assert fetch(account, push, run, lines).manifest is None
    assert (run.path / "adapter/adapter_model.safetensors").read_bytes() == BIG


@pytest.mark.parametrize(
    "name",
    ["../evil", "run/../../evil", "/etc/passwd", "run/a/../../../../evil", "run\\..\\evil",
     "C:evil", "run//x", "run/./x", "", "run/\nx", ".."],
)  # fmt: skip
def test_a_name_that_leads_out_is_refused_before_anything_is_written(
    account: Account,
    session: Session,
    push: PushRecord,
    run: RunDirectory,
    lines: Lines,
    name: str,
    tmp_path: Path,
) -> None:
    before = {path for path in tmp_path.rglob("*") if "kaggle.com" not in path.parts}
    end_session(session, FILES)
    session.extra[name] = b"evil"
    with pytest.raises(RunFailed, match="leads out of the run directory"):
        fetch(account, push, run, lines)
    after = {path for path in tmp_path.rglob("*") if "kaggle.com" not in path.parts}
    assert after == before


def test_a_link_in_the_run_directory_is_not_followed_outside(
    account: Account,
    session: Session,
    push: PushRecord,
    run: RunDirectory,
    lines: Lines,
    tmp_path: Path,
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (run.path / "adapter").symlink_to(tmp_path / "elsewhere")
    end_session(session, FILES)
    with pytest.raises(RunFailed, match="leads out"):
        fetch(account, push, run, lines)
    assert not list((tmp_path / "elsewhere").iterdir())


@given(st.text(alphabet="ab./\\:\x00 ~run", max_size=20))
def test_every_name_stays_inside_or_is_refused(name: str) -> None:
    try:
        place = place_of(name)
    except RunFailed:
        return
    root = Path("/home/run").resolve()
    assert (root / place).resolve().is_relative_to(root)
    assert place


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("run/events.jsonl", "events.jsonl"),
        ("run/wandb/offline-run-1/x.wandb", "wandb/offline-run-1/x.wandb"),
        ("manifest.json", "kaggle/manifest.json"),
        ("error.json", "error.json"),
        ("run/kaggle/state.json", "kaggle/output/run/kaggle/state.json"),
        ("__notebook__.ipynb", "kaggle/output/__notebook__.ipynb"),
        ("run", "kaggle/output/run"),
    ],
)
def test_output_files_map_to_their_places_in_the_run_directory(name: str, place: str) -> None:
    assert place_of(name) == place


def test_account_credentials_do_not_go_to_the_storage_host(
    kaggle: KaggleServer,
    account: Account,
    session: Session,
    push: PushRecord,
    run: RunDirectory,
    lines: Lines,
) -> None:
    end_session(session, {"run/report.json": b"{}"})
    fetch(account, push, run, lines)
    assert kaggle.file_headers
    assert all("Authorization" not in headers for headers in kaggle.file_headers)


def test_manifest_of_the_kernel_is_what_the_fetch_checks(tmp_path: Path) -> None:
    from medcot.kaggle.session.manifest import FileEntry, Manifest, read_manifest, write_manifest

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report.json").write_bytes(b"{}")
    write_manifest(tmp_path, Manifest("b", "r", 1, "done", 0, 1.5, ("note",)))
    manifest = read_manifest((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    digest = hashlib.sha256(b"{}").hexdigest()
    assert manifest.files == {"run/report.json": FileEntry(2, digest)}
    for damaged in ("", "[]", "{}", json.dumps({"files": 3})):
        with pytest.raises(ValueError):  # noqa: PT011
            read_manifest(damaged)
