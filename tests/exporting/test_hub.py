"""Uploads with the real client: new, existing, interrupted and resumed, refused."""

import json
from dataclasses import replace

import pytest

from medcot.errors import InputError, RunFailed
from medcot.exporting.workflow import ExportOptions, export_run
from medcot.listener import Listener
from tests.support.hub_upload_server import EXPIRED, READER, WRITER, serve_uploads

REPO = "ann/tuned"

# huggingface_hub 1.33 sends a file in a way that its own HTTP library calls outdated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


class Hearing(Listener):
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(str(line))


@pytest.fixture
def hub(monkeypatch):
    """A hub to which a token may write; the client waits for nothing between its attempts."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setenv("HF_TOKEN", WRITER)
    with serve_uploads() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.fixture(scope="module")
def folder(finished_run, tmp_path_factory):
    """An adapter that is made and proved."""
    out = tmp_path_factory.mktemp("out")
    export_run(finished_run, ExportOptions(("adapter",), out=out, answers=1))
    return out


@pytest.fixture
def options(folder):
    return ExportOptions(("hub",), out=folder, answers=1, repository=REPO)


def test_a_new_repository_is_private_and_the_revision_is_printed(hub, finished_run, options):
    hearing = Hearing()
    *_, record = export_run(finished_run, options, hearing)
    repo = hub.repos[REPO]
    assert repo["private"]
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md", "proof.json",
            "tokenizer.json"} <= set(repo["files"])  # fmt: skip
    assert hub.cards == [repo["files"]["README.md"].decode()]  # the validator is asked first
    assert record.made_from["revision"] == hub.head(REPO)
    assert f"revision {hub.head(REPO)}." in hearing.lines[-1]


def test_what_is_uploaded_is_what_was_proved_and_quotes_no_answer(
    hub, finished_run, options, folder
):
    export_run(finished_run, options)
    files = hub.repos[REPO]["files"]
    proof = json.loads(files["proof.json"])
    assert proof["outcome"] == "same"
    assert not {"run", "export"} & set(proof["parts"][0]["answers"][0])
    own = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
    assert files["adapter_model.safetensors"] == own


def test_a_second_upload_changes_nothing(hub, finished_run, options):
    *_, first = export_run(finished_run, options)
    *_, second = export_run(finished_run, options)
    assert first.made_from["revision"] == second.made_from["revision"]
    assert len(hub.repos[REPO]["commits"]) == 1


def test_an_existing_private_repository_keeps_its_other_files(hub, finished_run, options):
    hub.add(REPO, files={"notes.txt": b"mine"})
    export_run(finished_run, options)
    assert hub.repos[REPO]["files"]["notes.txt"] == b"mine"


def test_a_public_repository_must_be_asked_for(hub, finished_run, options):
    hub.add(REPO, private=False)
    with pytest.raises(InputError, match=r"is public; pass --public"):
        export_run(finished_run, options)
    assert not hub.repos[REPO]["commits"]
    export_run(finished_run, replace(options, public=True))
    assert hub.repos[REPO]["commits"]


def test_an_interrupted_upload_is_resumed_where_it_broke_off(hub, finished_run, options):
    hub.cut = 100
    with pytest.raises(RunFailed, match=r"broke off.*Repeat the command"):
        export_run(finished_run, options)
    assert not hub.repos[REPO]["commits"]
    hub.cut = 0
    already = set(hub.objects)
    hub.puts.clear()
    export_run(finished_run, options)
    assert len(hub.repos[REPO]["commits"]) == 1
    assert not already & set(hub.puts)


@pytest.mark.parametrize(
    ("token", "said"),
    [
        (EXPIRED, "refused the token; it may have expired"),
        (READER, "may not write to it"),
        ("", "no hub token was found"),
    ],
)
def test_a_token_that_does_not_do_is_one_line(hub, finished_run, options, monkeypatch, token, said):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(InputError, match=said):
        export_run(finished_run, options)
    assert not hub.repos


def test_a_file_that_arrives_changed_is_found(hub, finished_run, options):
    hub.spoil = True
    with pytest.raises(RunFailed, match="did not arrive whole"):
        export_run(finished_run, options)


def test_a_card_that_the_hub_does_not_take_is_one_line_and_nothing_is_sent(
    hub, finished_run, options, folder
):
    path = folder / "adapter" / "README.md"
    card = path.read_text(encoding="utf-8")
    path.write_text(card.replace("language: en", "language: English"), encoding="utf-8")
    with pytest.raises(InputError, match=r"README\.md: .*no ISO 639 code.*; correct its metadata"):
        export_run(finished_run, options)
    assert not hub.repos[REPO]["commits"]
    assert not hub.objects
    path.write_text(card, encoding="utf-8")
    export_run(finished_run, options)
    assert hub.repos[REPO]["commits"]


@pytest.mark.parametrize("name", ["", "tuned", "a/b/c", "https://x/y"])
def test_a_wrong_name_is_refused_before_anything_is_made(finished_run, tmp_path, name):
    options = ExportOptions(("hub",), out=tmp_path / "away", repository=name)
    with pytest.raises(InputError, match="--repo"):
        export_run(finished_run, options)
    assert not (tmp_path / "away").exists()
