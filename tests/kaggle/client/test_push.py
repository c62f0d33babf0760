"""Pushing to Kaggle: once, privately, every field of the answer read, nothing pushed twice."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from requests import Response

from medcot.config.schema import RunConfig
from medcot.errors import InputError, RunFailed
from medcot.kaggle.client import connection
from medcot.kaggle.client.account import Account, connect
from medcot.kaggle.client.build import CodePlace, Kernel, KernelOptions, build
from medcot.kaggle.client.push import push
from medcot.kaggle.client.push_state import last_push, read_pushes
from medcot.kaggle.client.retry import RetryPolicy, retry_after
from medcot.kaggle.session.job import JobSpec
from medcot.runs.directory import RunDirectory
from tests.support.kaggle_scripts import CONFIG, Lines, config_with, idle_session
from tests.support.kaggle_server import TOKEN, USER, KaggleServer

pytest_plugins = ["tests.support.kaggle_fixtures"]
Make = Callable[..., Kernel]
REF = f"{USER}/medcot-fine-tuning"


@pytest.fixture
def make(project: Path) -> Make:
    """Builds a kernel of the small project: a config, a run directory, options."""

    def build_small(
        config: RunConfig, run: RunDirectory, options: KernelOptions | None = None
    ) -> Kernel:
        return build(config, run, USER, options or KernelOptions(gpu=True), project)

    return build_small


@pytest.fixture
def kernel(make: Make, run: RunDirectory) -> Kernel:
    return make(CONFIG, run)


def test_push_sends_a_private_gpu_script_and_keeps_what_was_pushed(
    kaggle: KaggleServer, account: Account, kernel: Kernel, run: RunDirectory, lines: Lines
) -> None:
    sent = push(account, kernel, run, lines)
    [body] = kaggle.calls_of("SaveKernel")
    assert body["isPrivate"] is True
    assert body["enableGpu"] is True
    assert body["machineShape"] == "NvidiaTeslaT4"
    assert body["sessionTimeoutSeconds"] == 12 * 3600
    assert (body["slug"], body["kernelType"], body["language"]) == (REF, "script", "python")
    state = run.read_json("kaggle/state.json")
    assert state["ref"] == REF == sent.ref
    assert state["version"] == 1 == sent.version
    assert state["checksum"] == kernel.checksum
    assert state["config"] == CONFIG.model_dump(mode="json")
    assert "GPU quota: 27.0 of 30 hours left this week" in lines.text


def test_first_push_says_which_boxes_to_tick(
    account: Account, kernel: Kernel, run: RunDirectory, lines: Lines
) -> None:
    push(account, kernel, run, lines)
    assert "Add-ons > Secrets" in lines.text
    assert "HUGGINGFACE_TOKEN" in lines.text
    assert "WANDB_API_KEY" in lines.text
    assert f"https://www.kaggle.com/code/{REF}/edit" in lines.text


def test_the_boxes_have_the_labels_that_were_chosen(
    account: Account, make: Make, run: RunDirectory, lines: Lines
) -> None:
    job = JobSpec(hub_labels=("my-hub",), wandb_labels=("my-wandb",))
    push(account, make(CONFIG, run, KernelOptions(job=job)), run, lines)
    assert "tick my-hub (private models, uploads) and my-wandb (live W&B)" in lines.text


def test_the_same_bundle_is_pushed_once(
    kaggle: KaggleServer, account: Account, kernel: Kernel, run: RunDirectory, lines: Lines
) -> None:
    first = push(account, kernel, run, lines)
    again = push(account, kernel, run, lines)
    assert again.version == first.version
    assert len(kaggle.calls_of("SaveKernel")) == 1
    assert "not pushed again" in lines.text


def test_the_same_bundle_is_recognised_from_another_run_directory(
    kaggle: KaggleServer,
    account: Account,
    make: Make,
    kernel: Kernel,
    run: RunDirectory,
    lines: Lines,
) -> None:
    push(account, kernel, run, lines)
    other = RunDirectory(run.path.with_name("other"))
    sent = push(account, make(CONFIG, other), other, lines)
    assert sent.version == 1
    assert len(kaggle.calls_of("SaveKernel")) == 1


def test_an_older_push_of_the_same_bundle_is_not_repeated_after_a_newer_one(
    kaggle: KaggleServer,
    account: Account,
    make: Make,
    kernel: Kernel,
    run: RunDirectory,
    lines: Lines,
) -> None:
    push(account, kernel, run, lines)
    other = RunDirectory(run.path.with_name("other"))
    push(account, make(config_with(seed=1), other), other, lines)
    with pytest.raises(InputError, match="version 1"):
        push(account, kernel, run, lines)
    assert len(kaggle.calls_of("SaveKernel")) == 2


def test_again_pushes_the_same_bundle_once_more(
    kaggle: KaggleServer, account: Account, kernel: Kernel, run: RunDirectory, lines: Lines
) -> None:
    push(account, kernel, run, lines)
    assert push(account, kernel, run, lines, again=True).version == 2
    assert last_push(run).version == 2


@pytest.mark.parametrize("fault", [{"status": 503}, {}], ids=["error 503", "lost connection"])
def test_a_push_that_arrived_without_an_answer_is_taken_over(
    kaggle: KaggleServer,
    account: Account,
    kernel: Kernel,
    run: RunDirectory,
    lines: Lines,
    fault: dict[str, int],
) -> None:
    kaggle.fail("SaveKernel", carry_out=True, **fault)
    assert push(account, kernel, run, lines).version == 1
    assert len(kaggle.calls_of("SaveKernel")) == 1


def test_a_push_that_kaggle_is_silent_about_is_not_waited_for_for_ever(
    kaggle: KaggleServer,
    account: Account,
    kernel: Kernel,
    run: RunDirectory,
    lines: Lines,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "READ_S", 0.5)
    kaggle.fail("SaveKernel", silent_s=3, carry_out=True)
    assert push(account, kernel, run, lines).version == 1
    assert len(kaggle.calls_of("SaveKernel")) == 1


def test_a_client_killed_between_push_and_answer_finds_its_version(
    kaggle: KaggleServer,
    account: Account,
    kernel: Kernel,
    run: RunDirectory,
    lines: Lines,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save = account.save

    def die(*arguments: object) -> None:
        save(*arguments)  # pyright: ignore
        raise KeyboardInterrupt

    monkeypatch.setattr(account, "save", die)
    with pytest.raises(KeyboardInterrupt):
        push(account, kernel, run, lines)
    assert [sent.version for sent in read_pushes(run)] == [0]
    monkeypatch.setattr(account, "save", save)
    assert push(account, kernel, run, lines).version == 1
    assert len(kaggle.calls_of("SaveKernel")) == 1


def test_5xx_errors_before_a_push_arrives_are_retried_and_it_starts_one_session(
    kaggle: KaggleServer, account: Account, kernel: Kernel, run: RunDirectory, lines: Lines
) -> None:
    kaggle.fail("SaveKernel", status=503, times=2)
    kaggle.fail("GetKernel", status=502, times=3)
    kaggle.fail("GetAcceleratorQuotaStatistics", status=500, times=2)
    assert push(account, kernel, run, lines).version == 1
    assert len(kaggle.sessions()) == 1


def test_too_many_requests_are_followed_by_the_wait_that_was_asked_for(
    kaggle: KaggleServer,
    account: Account,
    kernel: Kernel,
    run: RunDirectory,
    lines: Lines,
    naps: list[float],
) -> None:
    kaggle.fail("GetAcceleratorQuotaStatistics", status=429, headers={"Retry-After": "7"})
    kaggle.fail("SaveKernel", status=429, headers={"Retry-After": "11"})
    push(account, kernel, run, lines)
    assert naps == [7.0, 11.0]


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        ('The requested title "x" is already in use', InputError, "taken; use another title"),
        ("Maximum batch GPU session count of 2 reached", RunFailed, "Wait for a running GPU"),
        ("You have exceeded your GPU quota", RunFailed, "weekly quota"),
        ("Something else", RunFailed, "Kaggle says: Something else. Nothing was started."),
    ],
)
def test_an_error_in_a_200_answer_is_a_refusal(
    kaggle: KaggleServer,
    account: Account,
    kernel: Kernel,
    run: RunDirectory,
    lines: Lines,
    error: str,
    kind: type[Exception],
    says: str,
) -> None:
    kaggle.fail("SaveKernel", body={"error": error})
    with pytest.raises(kind, match=says):
        push(account, kernel, run, lines)
    # Nothing is taken for pushed, so the next try does push.
    assert push(account, kernel, run, lines).version == 1


@pytest.mark.parametrize("kind", ["Dataset", "Competition", "Kernel", "Model"])
def test_an_invalid_source_in_a_200_answer_is_a_failure_that_names_it(
    kaggle: KaggleServer,
    account: Account,
    kernel: Kernel,
    run: RunDirectory,
    lines: Lines,
    kind: str,
) -> None:
    body = {f"invalid{kind}Sources": ["ann/nowhere"], "versionNumber": 4, "ref": "/code/x"}
    kaggle.fail("SaveKernel", body=body)
    with pytest.raises(RunFailed, match=rf"{kind.lower()} sources: ann/nowhere.*[Vv]ersion 4"):
        push(account, kernel, run, lines)


@pytest.mark.parametrize("status", [401, 403])
def test_refused_credentials_are_told_apart_from_a_wrong_name(
    kaggle: KaggleServer,
    account: Account,
    kernel: Kernel,
    run: RunDirectory,
    lines: Lines,
    status: int,
) -> None:
    kaggle.fail("GetAcceleratorQuotaStatistics", status=status)
    with pytest.raises(InputError, match=f"credentials: refused by Kaggle .{status}"):
        push(account, kernel, run, lines)
    assert not kaggle.calls_of("SaveKernel")


def test_a_refused_kernel_with_good_credentials_blames_the_kernel(
    kaggle: KaggleServer, account: Account, kernel: Kernel, run: RunDirectory, lines: Lines
) -> None:
    kaggle.fail("SaveKernel", status=403)
    with pytest.raises(RunFailed, match=r"HTTP 403.*credentials work.*phone number"):
        push(account, kernel, run, lines)


def test_no_quota_stops_before_anything_is_sent(
    kaggle: KaggleServer, account: Account, kernel: Kernel, run: RunDirectory, lines: Lines
) -> None:
    kaggle.hours_used = 29.9
    with pytest.raises(RunFailed, match=r"0\.1 of 30 GPU hours are left.*renewed on Saturday 28"):
        push(account, kernel, run, lines)
    assert not kaggle.calls_of("SaveKernel")


def test_a_cpu_kernel_needs_no_quota(
    kaggle: KaggleServer, account: Account, make: Make, run: RunDirectory, lines: Lines
) -> None:
    kaggle.hours_used = 30
    assert push(account, make(CONFIG, run, KernelOptions()), run, lines).version == 1


def test_an_account_without_a_quota_yet_may_push(
    kaggle: KaggleServer, account: Account, kernel: Kernel, run: RunDirectory, lines: Lines
) -> None:
    kaggle.names_quota = False
    assert push(account, kernel, run, lines).version == 1
    assert "Kaggle names none for this account" in lines.text


def test_another_running_gpu_session_is_mentioned(
    kaggle: KaggleServer, account: Account, kernel: Kernel, run: RunDirectory, lines: Lines
) -> None:
    kaggle.hours_reserved = 2
    push(account, kernel, run, lines)
    assert "another GPU session is running (2.0 hours reserved)" in lines.text


def test_a_version_that_still_runs_is_not_pushed_over(
    kaggle: KaggleServer,
    account: Account,
    make: Make,
    kernel: Kernel,
    run: RunDirectory,
    lines: Lines,
) -> None:
    kaggle.start = idle_session
    push(account, kernel, run, lines)
    other = RunDirectory(run.path.with_name("other"))
    second = make(config_with(seed=1), other)
    with pytest.raises(RunFailed, match=r"version 1 of .* is running"):
        push(account, second, other, lines)


def test_a_kernel_that_is_not_ours_is_not_overwritten(
    kaggle: KaggleServer, account: Account, kernel: Kernel, run: RunDirectory, lines: Lines
) -> None:
    body = {"slug": REF, "newTitle": "medcot fine-tuning", "text": "print('my work')"}
    kaggle.start = idle_session
    kaggle.answer("SaveKernel", body)
    with pytest.raises(InputError, match="did not make"):
        push(account, kernel, run, lines)
    assert not kaggle.calls_of("SaveKernel")


def test_a_taken_title_asks_for_another(
    kaggle: KaggleServer, account: Account, kernel: Kernel, run: RunDirectory, lines: Lines
) -> None:
    kaggle.titles["medcot fine-tuning"] = f"{USER}/an-older-slug"
    with pytest.raises(InputError, match=r"--title.*taken"):
        push(account, kernel, run, lines)


def test_a_folder_made_public_by_hand_is_refused_unless_told(
    kaggle: KaggleServer, account: Account, kernel: Kernel, run: RunDirectory, lines: Lines
) -> None:
    path = kernel.folder / "kernel-metadata.json"
    path.write_text(json.dumps(dict(kernel.metadata) | {"is_private": False}), encoding="utf-8")
    with pytest.raises(InputError, match="is_private"):
        push(account, kernel, run, lines)
    assert not kaggle.calls_of("SaveKernel")
    assert push(account, kernel, run, lines, public=True).version == 1


@pytest.mark.parametrize("code", ["inline", "dataset"])
def test_a_secret_that_came_after_the_build_is_found_before_the_push(
    kaggle: KaggleServer,
    account: Account,
    make: Make,
    run: RunDirectory,
    lines: Lines,
    monkeypatch: pytest.MonkeyPatch,
    code: CodePlace,
) -> None:
    config, options = config_with(wandb_project="a-name-that-is-a-secret"), KernelOptions()
    kernel = make(config, run, replace(options, code=code))
    monkeypatch.setenv("LATER_KEY", "a-name-that-is-a-secret")
    with pytest.raises(InputError, match=r"config\.json.*the value of LATER_KEY"):
        push(account, kernel, run, lines)
    assert not kaggle.calls_of("SaveKernel")
    assert not kaggle.calls_of("StartBlobUpload")


def test_a_script_changed_by_hand_is_not_pushed(
    kaggle: KaggleServer, account: Account, kernel: Kernel, run: RunDirectory, lines: Lines
) -> None:
    path = kernel.folder / "kernel.py"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(kernel.checksum, "0" * 64), encoding="utf-8")
    with pytest.raises(InputError, match="it was changed; build it again"):
        push(account, kernel, run, lines)
    assert not kaggle.calls_of("SaveKernel")


def test_a_large_bundle_travels_as_a_private_data_set(
    kaggle: KaggleServer, account: Account, make: Make, run: RunDirectory, lines: Lines
) -> None:
    kernel = make(CONFIG, run, KernelOptions(code="dataset"))
    push(account, kernel, run, lines)
    [made] = kaggle.calls_of("CreateDataset")
    source = (kernel.folder / "kernel.py").read_text(encoding="utf-8")
    [code] = re.findall(r'\nCODE = "(\w+)"', source)
    assert made["isPrivate"] is True
    ref = f"{USER}/medcot-fine-tuning-bundle"
    assert kaggle.calls_of("SaveKernel")[0]["datasetDataSources"] == [ref]
    assert (kaggle.datasets[ref]["folder"] / f"medcot-{code[:16]}.bundle").exists()
    other = RunDirectory(run.path.with_name("other"))
    push(account, make(config_with(seed=1), other, KernelOptions(code="dataset")), other, lines)
    assert len(kaggle.calls_of("CreateDatasetVersion")) == 1


def test_a_public_secrets_data_set_is_refused(
    kaggle: KaggleServer, account: Account, make: Make, run: RunDirectory, lines: Lines
) -> None:
    kaggle.add_dataset("ann/keys", {"wandb": b"x"}, private=False)
    options = KernelOptions(job=replace(JobSpec(), secrets_dataset="ann/keys"))
    with pytest.raises(InputError, match="ann/keys is public"):
        push(account, make(CONFIG, run, options), run, lines)
    assert not kaggle.calls_of("SaveKernel")


def test_an_access_token_signs_in_by_itself(
    kaggle: KaggleServer, policy: RetryPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KAGGLE_USERNAME")
    monkeypatch.delenv("KAGGLE_KEY")
    monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
    account = connect(policy)
    assert account.user == USER
    quota = account.quota()
    assert quota is not None
    assert quota.left_h == 27.0


def test_no_credentials_are_one_line_that_says_where_to_get_them(
    kaggle: KaggleServer,
    policy: RetryPolicy,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("KAGGLE_USERNAME")
    monkeypatch.delenv("KAGGLE_KEY")
    with pytest.raises(InputError, match=r"KAGGLE_API_TOKEN.*kaggle\.com/settings"):
        connect(policy)
    assert capsys.readouterr().out == ""


def test_a_server_that_stays_away_ends_the_wait_with_one_line(
    kaggle: KaggleServer, kernel: Kernel, run: RunDirectory, lines: Lines
) -> None:
    account = connect(RetryPolicy(limit_s=0.05, first_delay_s=0.01, sleep=lambda _: None))
    kaggle.fail("GetAcceleratorQuotaStatistics", status=503, times=1000)
    with pytest.raises(RunFailed, match=r"no answer to the quota.*Nothing is lost"):
        push(account, kernel, run, lines)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7), (" 7 ", 7), ("Fri, 31 Dec 1999 23:59:59 GMT", 0), ("soon", None), ("", None)],
)
def test_retry_after_holds_seconds_or_a_date(header: str, seconds: float | None) -> None:
    response = Response()
    response.headers["Retry-After"] = header
    assert retry_after(response) == seconds
    assert retry_after(None) is None


def test_a_third_gpu_session_is_not_started(
    kaggle: KaggleServer, account: Account, kernel: Kernel, run: RunDirectory, lines: Lines
) -> None:
    """What kaggle-api issue 185 describes."""
    kaggle.start = idle_session
    for title in ("one", "two"):
        other = {"slug": f"{USER}/{title}", "newTitle": title, "text": "", "enableGpu": True}
        assert kaggle.answer("SaveKernel", other)[1]["versionNumber"] == 1
    with pytest.raises(RunFailed, match=r"session count of 2 reached\. Wait for a running GPU"):
        push(account, kernel, run, lines)
    assert len(kaggle.sessions()) == 2


def test_a_version_is_asked_for_by_its_label_alone(
    kaggle: KaggleServer, account: Account, kernel: Kernel, run: RunDirectory, lines: Lines
) -> None:
    """What kaggle-cli issue 1200 and pull request 1201 describe."""
    push(account, kernel, run, lines)
    assert account.kernel(REF, 1) == account.kernel(REF)
    assert account.kernel(REF, 2) is None
    owner, slug = REF.split("/")
    for wrong, status in (({"versionLabel": "1"}, 404), ({"kernelSlug": f"{slug}/1"}, 403)):
        body = {"userName": owner, "kernelSlug": slug} | wrong
        assert kaggle.answer("GetKernel", body)[0] == status
