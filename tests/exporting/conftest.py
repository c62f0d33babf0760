"""One finished run of a tiny model, made once, for everything that is exported from it."""

import pytest

from medcot.config.presets import make_config
from medcot.pipeline.run import run
from medcot.runs.directory import RunDirectory

SMALL = {
    "samples": 12,
    "steps": 4,
    "save_steps": 2,
    "batch": 2,
    "test_samples": 4,
    "generate_samples": 2,
    "max_new_tokens": 6,
    "learning_rate": 1e-2,
}


@pytest.fixture(scope="session")
def finished_run(tiny_model, tmp_path_factory):
    directory = RunDirectory(tmp_path_factory.mktemp("runs") / "exported")
    run(make_config("demo", SMALL | {"model": str(tiny_model)}), directory)
    return directory
