"""A run's model taken away: every format is whole, loads elsewhere, and says the same."""

import json
import shutil
from dataclasses import replace

import pytest
from safetensors.torch import load_file

from medcot.cli.main import cli
from medcot.errors import Cancelled, InputError, RunFailed
from medcot.exporting import checks, make, room, workflow
from medcot.exporting.formats import parse_formats, parse_quantizations
from medcot.exporting.proof_file import read_record
from medcot.exporting.run_model import RunModel
from medcot.exporting.workflow import ExportOptions, export_run
from medcot.hardware.machine import detect_machine
from medcot.listener import Listener
from medcot.runs.directory import RunDirectory


class Hearing(Listener):
    def __init__(self, *, stops=False):
        self.lines, self.stops = [], stops

    def say(self, line):
        self.lines.append(str(line))

    def should_stop(self):
        return self.stops


@pytest.fixture
def copied_run(finished_run, tmp_path):
    """A run of the test's own, with what is exported already."""
    shutil.copytree(finished_run.path, tmp_path / "run")
    return RunDirectory(tmp_path / "run")


@pytest.fixture(scope="module")
def exported(finished_run):
    records = export_run(finished_run, ExportOptions(("adapter", "merged")))
    return finished_run.path / "export", {record.format: record for record in records}


@pytest.mark.parametrize("name", ["adapter", "merged"])
def test_an_export_is_loaded_by_its_program_and_found_the_same(exported, name):
    folder, records = exported
    proof = json.loads((folder / name / "proof.json").read_text(encoding="utf-8"))
    [part] = proof["parts"]
    assert proof["outcome"] == records[name].outcome == "same"
    assert part["program"].split()[0] == {"adapter": "peft", "merged": "transformers"}[name]
    assert len(part["rows"]) == 4
    assert len(part["answers"]) == 3
    assert all(answer["identical"] for answer in part["answers"])
    assert "not medical advice" in proof["not_medical_advice"]


def test_plain_peft_loads_the_adapter_and_plain_transformers_the_merged_model(
    exported, small_model
):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder, _ = exported
    base = AutoModelForCausalLM.from_pretrained(small_model)
    tuned = PeftModel.from_pretrained(base, folder / "adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged", dtype=torch.float32).eval()
    ids = torch.tensor([[5, 300, 77]])
    with torch.inference_mode():
        torch.testing.assert_close(tuned(ids).logits, merged(ids).logits, atol=1e-2, rtol=1e-2)
    assert merged.generation_config.eos_token_id == 2


def test_no_path_of_this_machine_is_in_an_export(exported, small_model):
    folder, _ = exported
    for path in folder.rglob("*.json"):
        assert str(small_model.parent) not in path.read_text(encoding="utf-8"), path


def test_a_second_call_makes_nothing(exported, finished_run, monkeypatch):
    monkeypatch.setattr(make, "make_merged", lambda *_: pytest.fail("made again"))
    hearing = Hearing()
    [record] = export_run(finished_run, ExportOptions(("merged",)), hearing)
    assert record.outcome == "same"
    assert "there already" in hearing.lines[0]


def test_a_damaged_export_is_made_again(exported, copied_run):
    path = copied_run.path / "export" / "adapter" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    [record] = export_run(copied_run, ExportOptions(("adapter",)))
    assert record.outcome == "same"
    assert read_record(path.parent).is_intact(path.parent)


def test_the_report_tells_what_the_proofs_found(exported, finished_run):
    text = finished_run.report_markdown.read_text(encoding="utf-8")
    assert "## Exports" in text
    assert "- merged: same." in text
    assert "## Figures" in text


def test_without_proof_nothing_is_loaded_and_the_record_says_so(copied_run, tmp_path):
    options = ExportOptions(("adapter",), out=tmp_path / "away", prove=False)
    [record] = export_run(copied_run, options)
    assert record.outcome == "unproved"
    assert "--no-proof" in str(record.worst.sentence)
    assert (tmp_path / "away" / "adapter" / "adapter_config.json").exists()


def test_a_broken_export_fails_and_is_put_aside(copied_run, monkeypatch):
    def halve(model, folder):
        make.make_adapter(model, folder)
        path = folder / "adapter_config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | {"lora_alpha": config["lora_alpha"] / 2}))

    monkeypatch.setitem(workflow._MAKERS, "adapter", lambda export, to: halve(export.model, to))
    shutil.rmtree(copied_run.path / "export", ignore_errors=True)
    with pytest.raises(RunFailed, match=r"lora_alpha is 8.*has 16"):
        export_run(copied_run, ExportOptions(("adapter",)))
    assert [one.name for one in (copied_run.path / "export").iterdir()] == ["adapter.broken"]
    assert "adapter: broken" in copied_run.report_markdown.read_text(encoding="utf-8")


def test_a_cancelled_export_leaves_nothing_half_made(copied_run):
    shutil.rmtree(copied_run.path / "export", ignore_errors=True)
    with pytest.raises(Cancelled):
        export_run(copied_run, ExportOptions(("adapter",)), Hearing(stops=True))
    assert list((copied_run.path / "export").iterdir()) == []
    assert not copied_run.lock.held


def test_too_little_space_is_refused_before_anything_is_made(copied_run, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match="1 MiB are free"):
        export_run(copied_run, ExportOptions(("merged",), out=tmp_path / "away"))
    assert not (tmp_path / "away").exists()


@pytest.mark.parametrize("formats", [("merged",), ("gguf",), ("adapter",)])
def test_too_little_memory_is_refused_before_anything_is_made(
    copied_run, tmp_path, monkeypatch, formats
):
    small = replace(detect_machine(), memory_gib=0.5)
    monkeypatch.setattr(room, "detect_machine", lambda: small)
    with pytest.raises(InputError, match=r"0\.5 GiB of memory are free, .* about 1\.0 GiB"):
        export_run(copied_run, ExportOptions(formats, ("F16",), out=tmp_path / "away"))
    assert not (tmp_path / "away").exists()


def test_an_adapter_that_is_not_proved_needs_no_memory(copied_run, tmp_path, monkeypatch):
    small = replace(detect_machine(), memory_gib=0.5)
    monkeypatch.setattr(room, "detect_machine", lambda: small)
    options = ExportOptions(("adapter",), out=tmp_path / "away", prove=False)
    assert [one.format for one in export_run(copied_run, options)] == ["adapter"]


def test_a_base_in_four_bits_is_dequantised_and_merged_and_that_is_said(copied_run, tmp_path):
    """On the CPU, where bitsandbytes packs and unpacks as it does on a GPU."""
    bitsandbytes = pytest.importorskip("bitsandbytes").functional
    plan = copied_run.read_json("plan.json")
    original = RunModel.of(copied_run)
    before, deltas = original.base_tensors(), original.deltas()
    copied_run.write_json("plan.json", plan | {"quantization": "4bit"})
    listener = Hearing()
    options = ExportOptions(("merged",), out=tmp_path, prove=False)
    export_run(copied_run, options, listener)
    assert any("in 4 bits" in line for line in listener.lines)
    assert "in 4 bits" in (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    for name in (one for one in before.names if one in deltas):
        weight = before.read(name).half()
        packed, state = bitsandbytes.quantize_4bit(
            weight, quant_type="nf4", compress_statistics=True
        )
        rounded = bitsandbytes.dequantize_4bit(packed, state).float()
        exact = rounded + deltas[name]()
        assert (merged[name].float() - exact).abs().max() < 2e-3 * exact.abs().max()
        assert (rounded - weight.float()).abs().max() > 0.01 * weight.abs().max()
    assert not list(checks.check_merged_weights(RunModel.of(copied_run), tmp_path / "merged"))


def test_a_run_that_was_not_scored_is_exported_only_without_proof(copied_run, tmp_path):
    copied_run.evaluation("after").unlink()
    with pytest.raises(InputError, match="--no-proof"):
        export_run(copied_run, ExportOptions(("adapter",), out=tmp_path / "away"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--to: no format given; expected one or more of adapter"),
        (["--to", "ggfu"], "found 'ggfu' (did you mean 'gguf'?)"),
        (["--to", "gguf", "--quantize", "q4"], "--quantize: found 'q4'"),
    ],
)
def test_a_wrong_option_is_one_line(arguments, said, finished_run):
    with pytest.raises(InputError) as raised:
        cli.main(["export", "--run", str(finished_run.path), *arguments], standalone_mode=False)
    assert said in str(raised.value)


def test_an_untrained_run_has_nothing_to_export(copied_run):
    shutil.rmtree(copied_run.adapter)
    with pytest.raises(InputError, match="train the run first"):
        export_run(copied_run, ExportOptions(("adapter",)))


def test_formats_are_made_once_and_in_the_order_in_which_they_build_on_one_another():
    assert parse_formats(["gguf", "adapter", "gguf"]) == ("adapter", "gguf")
    assert parse_quantizations(["q4_k_m", "f16"]) == ("F16", "Q4_K_M")


def test_a_byte_level_vocabulary_marked_as_sentencepiece_is_corrected():
    level = {"type": "ByteLevel", "add_prefix_space": True}
    found = {
        "model": {"type": "BPE", "byte_fallback": True},
        "pre_tokenizer": {"type": "ByteLevel"},
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, level]},
    }
    assert make.mend_byte_level(found)
    assert found["decoder"] == level
    assert not make.mend_byte_level(found)
