"""Checkpoints: only whole ones with finite numbers are saved and resumed from."""

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from medcot.errors import RunFailed
from medcot.runs.checkpoints import MANIFEST, find_damage, list_checkpoints
from medcot.runs.directory import RunDirectory
from medcot.training.checkpoints import check_before_saving, newest_whole_checkpoint
from tests.support.training_run import Training, make_rows


@pytest.fixture(scope="module")
def rows(tiny_model):
    return make_rows(tiny_model)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_model, rows):
    training = Training(tmp_path_factory.mktemp("whole") / "run", tiny_model, rows)
    training.fit()
    return training


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of the finished training, with the checkpoints of steps 4 and 6."""
    shutil.copytree(whole.directory.path, tmp_path / "run")
    return RunDirectory(tmp_path / "run")


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def empty(path):
    path.write_bytes(b"")


def remove(path):
    path.unlink()


def make_folder(path):
    path.unlink()
    path.mkdir()


FILES = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json")


@pytest.mark.parametrize("manifest", [True, False], ids=["", "without manifest"])
@pytest.mark.parametrize("damage", [flip_a_bit, cut, empty, remove, make_folder])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_passed_over_by_name(copy, caplog, name, damage, manifest):
    if damage is flip_a_bit and not manifest:
        pytest.skip("without checksums a flipped bit may leave a readable file")
    newest, older = list_checkpoints(copy.checkpoints)
    if not manifest:
        (newest / MANIFEST).unlink()
    damage(newest / name)
    with caplog.at_level(logging.WARNING):
        assert newest_whole_checkpoint(copy) == older
    assert name in caplog.text
    assert "checkpoint-6 is passed over" in caplog.text


@pytest.mark.parametrize("text", ["", "[]", "{", '{"files": {"optimizer.pt": 3}}'])
def test_a_damaged_manifest_makes_its_checkpoint_damaged(copy, text):
    newest, older = list_checkpoints(copy.checkpoints)
    (newest / MANIFEST).write_text(text)
    assert newest_whole_checkpoint(copy) == older


def test_folders_with_other_names_are_no_checkpoints(copy):
    for name in ("checkpoint-foo", "checkpoint-", "checkpoint-9x", "checkpoint-²"):
        (copy.checkpoints / name).mkdir()
    (copy.checkpoints / "checkpoint-99").write_text("a file")
    assert newest_whole_checkpoint(copy).name == copy.last_checkpoint().name == "checkpoint-6"


def test_every_checkpoint_has_a_manifest_that_fits(whole):
    found = list_checkpoints(whole.directory.checkpoints)
    assert [find_damage(one) for one in found] == ["", ""]
    named = json.loads((found[0] / MANIFEST).read_text())["files"]
    assert set(FILES) < set(named)


def test_a_checkpoint_of_an_earlier_version_is_taken(copy):
    for one in list_checkpoints(copy.checkpoints):
        (one / MANIFEST).unlink()
    assert newest_whole_checkpoint(copy).name == "checkpoint-6"


@pytest.mark.parametrize("part", ["adapter", "optimizer"])
def test_a_checkpoint_with_nan_from_an_earlier_version_is_passed_over(copy, part):
    newest, older = list_checkpoints(copy.checkpoints)
    (newest / MANIFEST).unlink()
    if part == "adapter":
        weights = load_file(newest / FILES[0])
        next(iter(weights.values()))[0, 0] = float("nan")
        save_file(weights, newest / FILES[0])
    else:
        state = torch.load(newest / "optimizer.pt", weights_only=True)
        state["state"][0]["exp_avg"].view(-1)[0] = float("inf")
        torch.save(state, newest / "optimizer.pt")
    assert newest_whole_checkpoint(copy) == older


def test_resuming_from_the_older_checkpoint_gives_equal_results(whole, copy, tiny_model, rows):
    flip_a_bit(copy.checkpoints / "checkpoint-6" / "optimizer.pt")
    shutil.rmtree(copy.adapter)
    again = Training(copy.path, tiny_model, rows)
    seen = []
    again.fit(seen.append)
    assert [event.step for event in seen] == [5, 6]
    assert again.losses() == whole.losses()
    adapters = [one.directory.adapter / FILES[0] for one in (again, whole)]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


def test_numbers_that_are_not_finite_are_never_saved(tmp_path, tiny_model, rows):
    training = Training(tmp_path / "run", tiny_model, rows)

    def destroy(event):
        if event.step == 4:
            weights = training.loaded.model.named_parameters()
            next(one for name, one in weights if "lora_B" in name).data.fill_(float("nan"))

    with pytest.raises(RunFailed, match=r"step 4.*lower --learning-rate"):
        training.fit(destroy)
    assert newest_whole_checkpoint(training.directory).name == "checkpoint-2"
    assert not training.directory.adapter.exists()


def test_after_a_loss_of_nan_the_run_resumes_from_before_it(tmp_path, whole, tiny_model, rows):
    training = Training(tmp_path / "run", tiny_model, rows)

    def destroy(event):
        if event.step == 5:
            weights = training.loaded.model.named_parameters()
            next(one for name, one in weights if "lora_B" in name).data.fill_(float("nan"))

    with pytest.raises(RunFailed, match=r"became nan at step 6.*lower --learning-rate"):
        training.fit(destroy)
    assert newest_whole_checkpoint(training.directory).name == "checkpoint-4"
    assert not training.directory.adapter.exists()

    again = Training(tmp_path / "run", tiny_model, rows)
    seen = []
    again.fit(seen.append)
    assert [event.step for event in seen] == [5, 6]
    assert again.losses() == whole.losses()


@pytest.mark.parametrize("where", ["weight", "state"])
def test_weights_and_optimizer_are_checked(where):
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    check_before_saving(optimizer, 1)
    spoilt = weight.data if where == "weight" else optimizer.state[weight]["exp_avg"]
    spoilt[0] = float("inf")
    with pytest.raises(RunFailed, match="infinite at step 1"):
        check_before_saving(optimizer, 1)
