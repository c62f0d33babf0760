"""Planted faults are caught and named; good exports raise no alarm."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from medcot.exporting import make
from medcot.exporting.formats import ROUNDING, TOLERANCES
from medcot.exporting.measure import GreedyAnswer, Measured
from medcot.exporting.proof_set import ProofQuestion, ProofRow, ProofSet
from medcot.exporting.run_model import RunModel
from medcot.exporting.verdict import compare
from medcot.exporting.workflow import Export, ExportOptions, prove_adapter, prove_merged
from medcot.listener import Listener

LAYER = "model.layers.1.self_attn.v_proj.weight"


@pytest.fixture(scope="module")
def export(finished_run):
    return Export(RunModel.of(finished_run), ExportOptions(("merged",), answers=0), Listener())


@pytest.fixture(scope="module")
def good(export, tmp_path_factory):
    """Folders of a good adapter and a good merged model."""
    root = tmp_path_factory.mktemp("good")
    for name, write in (("adapter", make.make_adapter), ("merged", make.make_merged)):
        (root / name).mkdir()
        write(export.model, root / name)
    return root


def edit(name, **changes):
    """A fault in a JSON file; a value of None removes the field."""

    def plant(folder: Path, _model: RunModel) -> None:
        path = folder / name
        found = json.loads(path.read_text(encoding="utf-8")) | changes
        kept = {key: value for key, value in found.items() if value is not None}
        path.write_text(json.dumps(kept), encoding="utf-8")

    return plant


def weights(change, file="model.safetensors"):
    """A fault in the weights: ``change`` gets them all, and the run's model."""

    def plant(folder: Path, model: RunModel) -> None:
        tensors = load_file(folder / file)
        change(tensors, model)
        save_file(tensors, folder / file, metadata={"format": "pt"})

    return plant


def truncate(name):
    def plant(folder: Path, _model: RunModel) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return plant


def scale(share):
    """The adapter in one layer counts ``share`` times: 0 where it was not merged."""

    def change(tensors, model):
        base = model.base_tensors().read(LAYER).float()
        tensors[LAYER] = (base + share * model.deltas()[LAYER]()).half()

    return weights(change)


def everywhere(share):
    def change(tensors, model):
        for name, delta in model.deltas().items():
            base = model.base_tensors().read(name).float()
            tensors[name] = (base + share * delta()).half()

    return weights(change)


def drop(name):
    return lambda tensors, _model: tensors.pop(name)


def fill(name, value):
    return lambda tensors, _model: tensors[name].fill_(value)


def other_tokenizer(folder, _model):
    path = folder / "tokenizer.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    found["model"]["merges"] = found["model"]["merges"][:50]
    path.write_text(json.dumps(found), encoding="utf-8")


def other_template(folder, _model):
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("assistant", "doctor"), encoding="utf-8")


def leading_space(folder, _model):
    path = folder / "tokenizer.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    found["pre_tokenizer"]["add_prefix_space"] = True
    path.write_text(json.dumps(found), encoding="utf-8")


FIRST_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
ADAPTER = "adapter_model.safetensors"

MERGED_FAULTS = {
    "lost end token": (edit("tokenizer_config.json", eos_token="<|endoftext|>"),
                       "proof_end_differs"),
    "end not named": (edit("generation_config.json", eos_token_id=0), "proof_end_not_named"),
    "other template": (other_template, "proof_template_differs"),
    "lost template": (lambda f, _: (f / "chat_template.jinja").unlink(),
                      "proof_template_differs"),
    "layer not merged": (scale(0), "proof_not_merged"),
    "nothing merged": (everywhere(0), "proof_not_merged"),
    "scale halved": (everywhere(0.5), "proof_scaled"),
    "scale doubled": (everywhere(2), "proof_scaled"),
    "adapter subtracted": (scale(-1), "proof_scaled"),
    "wrong rope": (edit("config.json", rope_parameters={"rope_theta": 5e5, "rope_type": "default"}),
                   "proof_setting_differs"),
    "tied head untied": (edit("config.json", tie_word_embeddings=False), "proof_setting_differs"),
    "other norm": (edit("config.json", rms_norm_eps=1e-3), "proof_setting_differs"),
    "tokenizer of another model": (other_tokenizer, "proof_tokens_differ"),
    "a space before every text": (leading_space, "proof_tokens_differ"),
    "truncated weights": (truncate("model.safetensors"), "proof_not_loaded"),
    "truncated tokenizer": (truncate("tokenizer.json"), "proof_no_tokenizer"),
    "weight lost": (weights(drop("model.norm.weight")), "proof_weights_missing"),
    "weight not finite": (weights(fill(LAYER, float("nan"))), "proof_not_finite"),
    "weight of another model": (weights(fill("model.norm.weight", 0.5)), "proof_weight_differs"),
}  # fmt: skip
ADAPTER_FAULTS = {
    "alpha halved": (edit("adapter_config.json", lora_alpha=8), "proof_setting_differs"),
    "alpha doubled": (edit("adapter_config.json", lora_alpha=32), "proof_setting_differs"),
    "scaled by the root of the rank": (edit("adapter_config.json", use_rslora=True),
                                       "proof_setting_differs"),
    "a module left out": (edit("adapter_config.json", target_modules=["q_proj"]),
                          "proof_setting_differs"),
    "adapter truncated": (truncate(ADAPTER), "proof_not_loaded"),
    "adapter's weight lost": (weights(drop(FIRST_A), ADAPTER), "proof_weights_missing"),
    "adapter's weight zeroed": (weights(fill(FIRST_A, 0), ADAPTER), "proof_weight_differs"),
}  # fmt: skip


def codes(parts):
    [part] = parts
    return part.comparison.outcome, [finding.code for finding in part.comparison.findings]


@pytest.mark.parametrize("name", MERGED_FAULTS)
def test_a_fault_in_a_merged_model_is_caught_and_named(export, good, tmp_path, name):
    plant, code = MERGED_FAULTS[name]
    shutil.copytree(good / "merged", tmp_path / "merged")
    plant(tmp_path / "merged", export.model)
    outcome, found = codes(prove_merged(export, tmp_path / "merged"))
    assert outcome == "broken"
    assert code in found


@pytest.mark.parametrize("name", ADAPTER_FAULTS)
def test_a_fault_in_an_adapter_is_caught_and_named(export, good, tmp_path, name):
    plant, code = ADAPTER_FAULTS[name]
    shutil.copytree(good / "adapter", tmp_path / "adapter")
    plant(tmp_path / "adapter", export.model)
    outcome, found = codes(prove_adapter(export, tmp_path / "adapter"))
    assert outcome == "broken"
    assert code in found


def in_shards(folder, _model):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")


def in_bfloat16(folder, model):
    def change(tensors, model):
        for name, tensor in tensors.items():
            delta = model.deltas().get(name)
            added = delta() if delta else torch.zeros_like(tensor)
            exact = model.base_tensors().read(name).float() + added
            tensors[name] = exact.bfloat16()

    weights(change)(folder, model)


def in_float32(folder, model):
    weights(lambda tensors, _: tensors.update({k: v.float() for k, v in tensors.items()}))(
        folder, model
    )


def template_in_settings(folder, model):
    """As older versions of transformers keep it."""
    path = folder / "chat_template.jinja"
    edit("tokenizer_config.json", chat_template=path.read_text(encoding="utf-8"))(folder, model)
    path.unlink()


GOOD_VARIANTS = {
    "as made": lambda folder, model: None,
    "in shards": in_shards,
    "in bfloat16": in_bfloat16,
    "in float32": in_float32,
    "more end tokens than the run's": edit("generation_config.json", eos_token_id=[2, 0]),
    "a note in the config": edit("config.json", transformers_version="4.40.0", use_cache=False),
    "template among the settings": template_in_settings,
    "answers sampled by default": edit("generation_config.json", do_sample=True, temperature=0.7),
    "another longest text": edit("tokenizer_config.json", model_max_length=512),
    "another padding token": edit("config.json", pad_token_id=2),
}
GOOD_ADAPTERS = {
    "as made": lambda folder, model: None,
    "modules in another order": lambda folder, model: edit(
        "adapter_config.json", target_modules=model.adapter_config["target_modules"][::-1]
    )(folder, model),
    "ready to be trained": edit("adapter_config.json", inference_mode=False),
    "base in another place": edit("adapter_config.json", base_model_name_or_path="elsewhere"),
}


@pytest.mark.parametrize("name", GOOD_VARIANTS)
def test_a_good_merged_model_raises_no_alarm(export, good, tmp_path, name):
    shutil.copytree(good / "merged", tmp_path / "merged")
    GOOD_VARIANTS[name](tmp_path / "merged", export.model)
    assert codes(prove_merged(export, tmp_path / "merged")) == ("same", [])


@pytest.mark.parametrize("name", GOOD_ADAPTERS)
def test_a_good_adapter_raises_no_alarm(export, good, tmp_path, name):
    shutil.copytree(good / "adapter", tmp_path / "adapter")
    GOOD_ADAPTERS[name](tmp_path / "adapter", export.model)
    assert codes(prove_adapter(export, tmp_path / "adapter")) == ("same", [])


def made_up(seed, offset=0.0, noise=0.0, ends=True):
    """A proof set of 24 rows and 5 answers, and what an export with this error says of it."""
    draw = random.Random(seed)
    rows, losses = [], []
    for number in range(24):
        n = draw.randint(40, 300)
        total = n * draw.uniform(1.5, 3.5)
        rows.append(ProofRow(f"r{number}", "", "", (1,), tuple(range(n)), total))
        losses.append(total + n * (offset + draw.gauss(0, noise)))
    asked = [ProofQuestion(f"q{n}", "", (1,), "abc", 4, True) for n in range(5)]
    answers = tuple(GreedyAnswer((1, 2, 3), ends) for _ in asked)
    proof_set = ProofSet(tuple(rows), tuple(asked), 9, "", "<s>", "</s>", (2,))
    return proof_set, Measured(tuple(losses), answers, "a program", "float32")


@pytest.mark.parametrize("seed", range(20))
def test_rounding_raises_no_alarm(seed):
    asked, measured = made_up(seed, offset=3e-4, noise=2e-3)
    assert compare("x", asked, measured, [], ROUNDING, lambda ids: "abc").outcome == "same"


def test_rounding_downwards_is_not_called_minus_zero():
    asked, measured = made_up(1, offset=-1e-5, noise=0.0)
    found = compare("x", asked, measured, [], ROUNDING, lambda ids: "abc")
    assert "by +0.0000 nats" in str(found.sentence)


def test_the_cost_of_a_quantisation_is_stated_with_its_interval():
    asked, measured = made_up(1, offset=0.041, noise=0.01)
    found = compare("gguf Q4_K_M", asked, measured, [], TOLERANCES["Q4_K_M"], lambda ids: "abc")
    assert found.outcome == "changed"
    assert str(found.sentence).startswith("gguf Q4_K_M: changed. The test loss differs by +0.04")
    assert str(found.sentence).endswith("): worse.")
    assert found.loss.low < 0.041 < found.loss.high


def test_a_loss_that_the_format_cannot_explain_is_broken():
    asked, measured = made_up(2, offset=0.2, noise=0.01)
    found = compare("merged", asked, measured, [], ROUNDING, lambda ids: "abc")
    assert (found.outcome, [one.code for one in found.findings]) == ("broken", ["proof_loss_off"])


def test_answers_that_never_end_are_broken():
    asked, measured = made_up(3, ends=False)
    found = compare("merged", asked, measured, [], ROUNDING, lambda ids: "abc")
    assert [one.code for one in found.findings] == ["proof_endless"]
