"""The arguments that the trainer gets: what the plan says, whatever else the machine has."""

from dataclasses import replace

import torch

from medcot.config.presets import make_config
from medcot.training.trainers.choose import make_arguments
from tests.support.plans import LAPTOP, plan_for


def test_a_process_that_sees_two_gpus_trains_the_planned_batch_on_one(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    plan = replace(plan_for("demo", LAPTOP), device="cuda")
    arguments = make_arguments(make_config("demo"), plan, 2, tmp_path)
    assert arguments.n_gpu == 1
    assert arguments.train_batch_size == plan.micro_batch
