"""GGUF and Ollama: made by llama.cpp's own programs, loaded by llama.cpp, found the same."""

import json
import shutil

import pytest

from medcot.errors import InputError, RunFailed
from medcot.exporting import converter, gguf
from medcot.exporting.workflow import ExportOptions, export_run
from medcot.runs.directory import RunDirectory
from tests.exporting.conftest import make_run
from tests.support.fakes import make_tiny_model

pytestmark = pytest.mark.timeout(900)
"""The converter imports torch and transformers in a process of its own: 15 s on an idle core."""


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A run whose tokenizer is SmolLM2's as a whole, which llama.cpp's converter knows."""
    model = make_tiny_model(tmp_path_factory.mktemp("model") / "whole", vocabulary=49_152)
    return make_run(tmp_path_factory.mktemp("runs"), model)


@pytest.fixture(scope="module")
def exported(finished_run):
    options = ExportOptions(("gguf", "ollama"), ("Q8_0", "Q4_K_M"), answers=0)
    records = export_run(finished_run, options)
    return finished_run.path / "export", {record.format: record for record in records}


def test_llama_cpp_itself_loads_every_file_and_says_the_same(exported):
    _, records = exported
    parts = {part.name: part.comparison for part in records["gguf"].parts}
    assert list(parts) == ["gguf F16", "gguf Q8_0", "gguf Q4_K_M"]
    assert parts["gguf F16"].outcome == parts["gguf Q8_0"].outcome == "same"
    assert parts["gguf Q4_K_M"].outcome in ("same", "changed")
    assert abs(parts["gguf F16"].loss.difference) < 1e-3
    assert all(one.program.startswith("llama.cpp (cyllama") for one in parts.values())
    assert all(one.identical for one in parts["gguf F16"].answers)


def test_only_the_files_that_were_asked_for_are_kept(exported):
    folder, _ = exported
    files = sorted(path.name for path in (folder / "gguf").glob("*"))
    assert files == ["README.md", "model-Q4_K_M.gguf", "model-Q8_0.gguf", "proof.json"]


def test_a_modelfile_has_the_prompt_of_the_run_its_stop_and_its_settings(exported, finished_run):
    folder, records = exported
    assert records["ollama"].outcome == "same"
    text = (folder / "ollama" / "Modelfile").read_text(encoding="utf-8")
    assert "FROM ./model-Q8_0.gguf\n" in text
    assert 'PARAMETER stop "<|im_end|>"\n' in text
    assert "PARAMETER temperature 0\n" in text
    assert "PARAMETER num_predict 6\n" in text
    assert "not medical advice" in text
    template = text.partition('TEMPLATE """')[2].partition('"""')[0]
    row = next(finished_run.rows(finished_run.evaluation("after")))
    assert row["prompt"].startswith(template.partition("{{ .Prompt }}")[0])
    assert template.endswith("<think>\n")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (("<think>", "<thought>"), "proof_template_differs"),
        (('PARAMETER stop "<|im_end|>"', ""), "proof_end_not_named"),
        (("FROM ./model", "FROM ./other"), "proof_setting_differs"),
    ],
)
def test_a_wrong_modelfile_is_found(exported, finished_run, tmp_path, change, code):
    from medcot.exporting.proof_set import load_proof_set
    from medcot.exporting.run_model import RunModel

    shutil.copytree(exported[0] / "ollama", tmp_path / "ollama")
    path = tmp_path / "ollama" / "Modelfile"
    path.write_text(path.read_text(encoding="utf-8").replace(*change), encoding="utf-8")
    model = RunModel.of(finished_run)
    asked = load_proof_set(finished_run, model.tokenizer, model.end_ids, 2)
    found = list(gguf.check_modelfile(model, tmp_path / "ollama", asked))
    assert [one.code for one in found] == [code]


def test_a_file_that_ends_llama_cpp_is_named_and_ends_nothing_else(
    exported, finished_run, tmp_path
):
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(finished_run.path, run.path)
    path = run.path / "export" / "gguf" / "model-Q8_0.gguf"
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(gguf.LoadFailed):
        list(gguf._ask_llama({"do": "quantize", "file": str(path), "target": str(tmp_path / "q"),
                              "file_type": 7, "threads": 1}))  # fmt: skip


def test_without_llama_cpp_the_extra_is_named(finished_run, monkeypatch, tmp_path):
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"cyllama.*medcot\[export\]"):
        export_run(finished_run, ExportOptions(("gguf",), ("F16",), out=tmp_path / "away"))


def test_a_converter_that_cannot_be_fetched_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDCOT_CACHE", str(tmp_path))
    monkeypatch.setattr(converter.sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(RunFailed, match=r"llama_cpp_python-.*tar\.gz from PyPI into"):
        converter.find_converter()


def test_another_archive_than_the_expected_one_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDCOT_CACHE", str(tmp_path))
    (tmp_path / converter.ARCHIVE).write_bytes(b"something else")
    with pytest.raises(InputError, match="SHA-256"):
        converter.find_converter()
    assert not list(tmp_path.glob("llama.cpp*"))


def test_an_own_llama_cpp_is_used_where_one_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDCOT_LLAMA_CPP", str(tmp_path))
    with pytest.raises(InputError, match="MEDCOT_LLAMA_CPP"):
        converter.find_converter()
    (tmp_path / "convert_hf_to_gguf.py").write_text("", encoding="utf-8")
    assert converter.find_converter().parent == tmp_path


def test_an_installed_llama_quantize_is_used(monkeypatch, tmp_path):
    program = tmp_path / "bin" / "llama-quantize"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$3 $4" > "$2"\n', encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/bin:/usr/bin")
    gguf.quantize(tmp_path / "in", tmp_path / "out", "Q4_K_M")
    assert json.dumps((tmp_path / "out").read_text(encoding="utf-8"))[1:7] == "Q4_K_M"
