"""The model card: whole, honest, and taken by the hub's own library."""

import json
import shutil
from types import SimpleNamespace

import httpx
import pytest
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from medcot.catalog import Message
from medcot.config.presets import make_config
from medcot.config.schema import BUNDLED_MODEL
from medcot.exporting.card import BUNDLED_SOURCE, LICENCES, write_card
from medcot.exporting.formats import FORMATS
from medcot.exporting.make import base_name
from medcot.exporting.proof_file import ExportRecord, Part
from medcot.exporting.run_model import RunModel
from medcot.exporting.verdict import Comparison
from medcot.runs.directory import RunDirectory
from tests.support.hub_upload_server import LICENCES as HUB_LICENCES
from tests.support.hub_upload_server import WRITER, problems_of_card, serve_uploads


def record(outcome="unproved", code="proof_unproved"):
    part = Part("adapter", Comparison(outcome, Message(code, {"format": "adapter"})))
    return ExportRecord("adapter", {}, {}, (part,))


@pytest.fixture
def card(finished_run, tmp_path):
    write_card(RunModel.of(finished_run), tmp_path, record(), "adapter")
    return ModelCard.load(tmp_path / "README.md")


def test_a_folder_of_the_hubs_cache_is_named_as_on_the_hub(tmp_path):
    folder = tmp_path / "models--org--tiny" / "snapshots" / ("a" * 40)
    folder.mkdir(parents=True)
    model = SimpleNamespace(config=make_config("demo", {"model": str(folder)}))
    assert base_name(model) == "org/tiny"


def test_the_metadata_is_read_by_the_hubs_library(card):
    assert card.data.library_name == "peft"
    assert card.data.language == "en"
    assert "not-medical-advice" in card.data.tags
    [loss] = [one for one in card.data.eval_results if one.metric_type == "loss"]
    assert loss.metric_value > 0
    assert loss.dataset_split == "test"


def test_the_results_are_the_same_after_the_hubs_library_has_read_them(card):
    index = eval_results_to_model_index(card.data.model_name, card.data.eval_results)
    name, results = model_index_to_eval_results(index)
    assert name == card.data.model_name
    assert results == card.data.eval_results
    assert ModelCardData(**card.data.to_dict()).to_dict() == card.data.to_dict()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("", ""), None),
        (("language: en", "language: English"), "language is no ISO 639 code"),
        (("  - task:", "  - tasks:"), "a result lacks task, dataset or metric"),
        (("library_name: peft", "library_name: gguf"), "none of the hub's libraries"),
        (("tags:", "license: apache-2\ntags:"), "license is no identifier of the hub"),
        (("tags:", "datasets:\n- a/b/c\ntags:"), "Repo id must be in the form"),
        (("---\n", ""), "no metadata"),
    ],
)
def test_the_clients_validation_takes_the_card_and_no_damaged_one(
    card, monkeypatch, change, problem
):
    """``ModelCard.validate`` asks the hub at its one address: here a stand-in answers."""
    with serve_uploads() as hub, httpx.Client() as client:
        headers = {"Authorization": f"Bearer {WRITER}"}

        def post(url, **options):
            url = url.replace("https://huggingface.co", hub.url)
            return client.post(url, **options | {"headers": options["headers"] | headers})

        session = SimpleNamespace(post=post)
        monkeypatch.setattr("huggingface_hub.repocard.get_session", lambda: session)
        text = card.content.replace(*change) if change[0] else card.content
        monkeypatch.setattr(ModelCard, "__str__", lambda _card: text)
        if problem is None:
            card.validate()
        else:
            with pytest.raises(ValueError, match=problem):
                card.validate()
        assert hub.cards == [text]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_card_of_every_format_has_what_the_hub_documents(finished_run, tmp_path, language):
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(finished_run.path, run.path)
    bundled = {"language": language, "model": BUNDLED_MODEL}
    run.write_json("config.json", run.read_json("config.json") | bundled)
    model = RunModel.of(run)
    for name in FORMATS:
        (folder := tmp_path / name).mkdir()
        write_card(model, folder, record(), name)
        text = (folder / "README.md").read_text(encoding="utf-8")
        assert problems_of_card(text) == []
        data = ModelCard(text).data
        assert (data.license, data.base_model) == (LICENCES[BUNDLED_MODEL], BUNDLED_SOURCE)
        assert ("gguf" in data.tags) == (name in ("gguf", "ollama")) == (data.library_name is None)
    assert set(LICENCES.values()) <= set(HUB_LICENCES)


def test_the_card_of_a_gguf_names_a_file_that_is_there(finished_run, tmp_path):
    (tmp_path / "model-Q4_K_M.gguf").touch()
    write_card(RunModel.of(finished_run), tmp_path, record(), "gguf")
    assert "llama-server -m model-Q4_K_M.gguf" in (tmp_path / "README.md").read_text("utf-8")


def test_the_card_says_what_a_user_must_know(card, finished_run):
    report = finished_run.read_json("report.json")
    assert card.text.count("Not medical advice") == 1
    assert report["verdict"]["sentence"].split(" ")[0] in card.text
    assert "| test loss (nats per token) |" in card.text
    assert "not proved (--no-proof)" in card.text
    assert "medcot run --config run.toml" in card.text
    assert "Nobody with clinical training has reviewed its answers." in card.text
    for caution in report["cautions"]:
        assert str(Message.from_json(caution)) in card.text


def test_the_prompt_on_the_card_is_that_of_the_run(card, finished_run):
    row = next(finished_run.rows(finished_run.evaluation("after")))
    before = card.text.partition("```\n")[2].partition("{question}")[0]
    assert row["prompt"].startswith(before)


def test_the_settings_on_the_card_repeat_the_run(card, finished_run, tmp_path):
    import tomllib

    settings = tomllib.loads(card.text.partition("```toml\n")[2].partition("```")[0])
    assert settings["steps"] == 4
    assert settings["learning_rate"] == 1e-2
    assert "/" not in settings["model"]


def test_a_run_in_chinese_has_a_card_in_both_languages(finished_run, tmp_path):
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(finished_run.path, run.path)
    config = run.read_json("config.json")
    (run.path / "config.json").write_text(json.dumps(config | {"language": "zh"}))
    write_card(RunModel.of(run), tmp_path, record(), "merged")
    card = ModelCard.load(tmp_path / "README.md")
    assert "Not medical advice" in card.text
    assert "不构成医疗建议" in card.text
    assert card.data.language == "zh"


@pytest.mark.parametrize(
    ("name", "revision", "expected"),
    [
        ("/kaggle/input/set", "", None),
        ("data/set", "", None),
        ("owner/name", "a" * 40, ["owner/name"]),
        ("/kaggle/input/set + owner/name", "a" * 40, ["owner/name"]),
    ],
)
def test_only_data_with_a_recorded_revision_is_named_as_a_set_of_the_hub(
    finished_run, tmp_path, name, revision, expected
):
    """The folder that a run was trained on may be gone, or on another machine."""
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(finished_run.path, run.path)
    environment = run.read_json("environment.json")
    environment["dataset"] |= {"name": name, "revision": revision}
    (run.path / "environment.json").write_text(json.dumps(environment))
    config = run.read_json("config.json") | {"dataset": name}
    (run.path / "config.json").write_text(json.dumps(config))
    write_card(RunModel.of(run), tmp_path, record(), "adapter")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.datasets == expected
    assert "/kaggle" not in card.text


def test_a_run_without_a_report_says_that_nobody_knows(finished_run, tmp_path):
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(finished_run.path, run.path)
    (run.path / "report.json").unlink()
    write_card(RunModel.of(run), tmp_path, record(), "gguf")
    assert "so nobody knows" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_code_and_modelfile_never_give_a_start_token_twice(finished_run, tmp_path):
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    from medcot.exporting import gguf

    model = RunModel.of(finished_run)
    assert model.added_start == ""
    tokenizer = AutoTokenizer.from_pretrained(finished_run.adapter)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    model.__dict__["tokenizer"] = tokenizer
    assert model.added_start == "<|im_start|>"
    write_card(model, tmp_path, record(), "merged")
    assert "add_special_tokens=False" in (tmp_path / "README.md").read_text(encoding="utf-8")
    gguf.make_modelfile(model, tmp_path, "Q8_0", ("<|im_start|>user", "<think>"))
    assert 'TEMPLATE """user{{ .Prompt }}<think>"""' in (tmp_path / "Modelfile").read_text()
