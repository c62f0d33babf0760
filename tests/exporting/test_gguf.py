"""GGUF and Ollama: made by llama.cpp's own programs, loaded by llama.cpp, found the same."""

import json
import shutil
import struct
import tempfile
from dataclasses import replace

import numpy as np
import pytest
from gguf.quants import quantize

from medcot.data.tokenization import chat_template
from medcot.errors import InputError, RunFailed
from medcot.exporting import converter, gguf, workflow
from medcot.exporting.gguf_weights import open_weights
from medcot.exporting.proof_set import load_proof_set, prompt_around
from medcot.exporting.run_model import RunModel
from medcot.exporting.workflow import Export, ExportOptions, export_run
from medcot.listener import Listener
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
def full_precision(tmp_path_factory):
    """Where the F16 file is kept that every other file is made from."""
    return tmp_path_factory.mktemp("kept") / "model-F16.gguf"


@pytest.fixture(scope="module")
def exported(finished_run, full_precision):
    options = ExportOptions(("gguf", "ollama"), ("Q8_0", "Q4_K_M"), answers=0)
    with pytest.MonkeyPatch.context() as patch:
        drop = workflow._drop_unasked

        def keep_and_drop(folder, quantizations):
            if (folder / full_precision.name).exists():
                shutil.copy(folder / full_precision.name, full_precision)
            drop(folder, quantizations)

        patch.setattr(workflow, "_drop_unasked", keep_and_drop)
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
    assert [part.name for part in records["ollama"].parts] == ["ollama Q8_0"]
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
        (("{{ .Prompt }}", ""), "proof_template_differs"),
        (('TEMPLATE """', 'TEMPLATE """{{ .Prompt }}"""\nSYSTEM """'), "proof_template_differs"),
        (('PARAMETER stop "<|im_end|>"', ""), "proof_end_not_named"),
        (("FROM ./model", "FROM ./other"), "proof_setting_differs"),
    ],
)
def test_a_wrong_modelfile_is_found(exported, finished_run, tmp_path, change, code):
    shutil.copytree(exported[0] / "ollama", tmp_path / "ollama")
    path = tmp_path / "ollama" / "Modelfile"
    path.write_text(path.read_text(encoding="utf-8").replace(*change), encoding="utf-8")
    model = RunModel.of(finished_run)
    asked = load_proof_set(finished_run, model.tokenizer, model.end_ids, 2)
    around = prompt_around(model.config, chat_template(model.tokenizer))
    folder = tmp_path / "ollama"
    # A run of conversations has no row that is a question alone.
    turns = replace(asked, rows=tuple(replace(row, single=False) for row in asked.rows))
    for one in (asked, turns):
        found = list(gguf.check_modelfile(model, folder, one, around))
        assert [finding.code for finding in found] == [code]


def number(key, value, kind="<f"):
    """A fault in a number that the file says of itself."""

    def plant(data, _model):
        place = data.index(key.encode()) + len(key) + 4  # after the number of its type
        struct.pack_into(kind, data, place, value)

    return plant


def text(key, before, after):
    """A fault in the bytes after a key, of the same length."""
    before, after = before.encode(), after.encode()

    def plant(data, _model):
        assert len(before) == len(after)
        place = data.index(before, data.index(key.encode()))
        data[place : place + len(before)] = after

    return plant


def swap(key, first, second):
    """A fault in a list of texts: two entries change places."""
    entries = [struct.pack("<Q", len(one.encode())) + one.encode() for one in (first, second)]

    def plant(data, _model):
        start = data.index(key.encode())
        places = [data.index(one, start) for one in entries]
        for place, entry in zip(places, reversed(entries), strict=True):
            data[place : place + len(entry)] = entry

    return plant


def weight(change, name="blk.1.attn_v.weight"):
    """A fault in one weight: ``change`` gets the base's and the adapter's product."""

    def plant(data, model):
        with tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            [found] = [one for one in open_weights(file.name).tensors if one.name == name]
        value = change(
            model.base_tensors().read(TRAINED).numpy(), model.deltas()[TRAINED]().numpy()
        )
        stored = quantize(value.astype(np.float32), found.tensor_type).tobytes()
        data[found.data_offset : found.data_offset + len(stored)] = stored

    return plant


def cut(data, _model):
    del data[100_000:]


TRAINED = "model.layers.1.self_attn.v_proj.weight"
GGUF_FAULTS = {
    "other end token": (number("tokenizer.ggml.eos_token_id", 0, "<I"), "proof_end_differs"),
    "lost end token": (text("", "tokenizer.ggml.eos_token_id", "tokenizer.ggml.xos_token_id"),
                       "proof_end_differs"),
    "other template": (text("tokenizer.chat_template", "assistant", "physician"),
                       "proof_template_differs"),
    "lost template": (text("", "tokenizer.chat_template", "tokenizer.chat_tamplete"),
                      "proof_template_differs"),
    "other rope base": (number("llama.rope.freq_base", 5e5), "proof_setting_differs"),
    "other norm": (number("llama.attention.layer_norm_rms_epsilon", 1e-3),
                   "proof_setting_differs"),
    "tokens of another vocabulary": (swap("tokenizer.ggml.tokens", "\u0120the", "\u0120and"),
                                     "proof_tokens_differ"),
    "merges of another tokenizer": (text("tokenizer.ggml.merges", "\u0120 t", "\u0120 ~"),
                                    "proof_tokens_differ"),
    "a layer not merged": (weight(lambda base, _delta: base), "proof_not_merged"),
    "a layer merged twice": (weight(lambda base, delta: base + 2 * delta), "proof_scaled"),
    "a layer of zeros": (weight(lambda base, _delta: 0 * base), "proof_weight_differs"),
    "a weight not finite": (weight(lambda base, _delta: base * np.nan), "proof_not_finite"),
    "cut": (cut, "proof_not_loaded"),
}  # fmt: skip


def spoil(source, target, plant, model):
    data = bytearray(source.read_bytes())
    plant(data, model)
    target.write_bytes(data)


@pytest.fixture(scope="module")
def export(finished_run):
    return Export(RunModel.of(finished_run), ExportOptions(("gguf",), answers=0), Listener())


def findings_of(export, file, kind):
    found = workflow._prove_file(export, file, f"gguf {kind}", kind)
    return found.outcome, [one.code for one in found.findings]


@pytest.mark.parametrize("name", GGUF_FAULTS)
@pytest.mark.usefixtures("exported")
def test_a_fault_in_a_gguf_file_is_caught_and_named(export, full_precision, tmp_path, name):
    plant, code = GGUF_FAULTS[name]
    file = tmp_path / full_precision.name
    spoil(full_precision, file, plant, export.model)
    outcome, found = findings_of(export, file, "F16")
    assert outcome == "broken"
    assert code in found


@pytest.mark.parametrize("kind", ["F16", "Q6_K", "Q5_K_M"])
@pytest.mark.usefixtures("exported")
def test_a_good_gguf_file_raises_no_alarm(export, full_precision, tmp_path, kind):
    file = tmp_path / f"model-{kind}.gguf"
    if kind == "F16":
        spoil(full_precision, file, text("", "general.name", "general.nome"), export.model)
    else:
        gguf.quantize(full_precision, file, kind)
    assert findings_of(export, file, kind) == ("same", [])


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
