import pytest

from medcot.config.presets import PRESETS, make_config
from medcot.config.schema import TARGET_MODULES, RunConfig, bounds, describe_values
from medcot.errors import InputError

RECIPE = {
    "model": "unsloth/DeepSeek-R1-Distill-Llama-8B",
    "dataset": "FreedomIntelligence/medical-o1-reasoning-SFT",
    "language": "en",
    "samples": 500,
    "quantization": "4bit",
    "max_length": 2048,
    "rank": 16,
    "alpha": 16,
    "dropout": 0.0,
    "checkpointing": "on",
    "engine": "unsloth",
    "seed": 3407,
    "style": "tutorial",
    "micro_batch": 2,
    "batch": 8,
    "warmup_steps": 5,
    "steps": 60,
    "epochs": None,
    "learning_rate": 2e-4,
    "schedule": "linear",
    "optimizer": "adamw_8bit",
    "weight_decay": 0.01,
    "precision": "auto",
    "packing": "off",
    "wandb": "online",
    "wandb_job_type": "training",
    "max_new_tokens": 1200,
}


@pytest.mark.parametrize("field", RECIPE)
def test_tutorial_preset_is_the_recipe(field):
    assert getattr(make_config("tutorial"), field) == RECIPE[field]


def test_adapter_is_on_the_seven_projections_of_the_recipe():
    assert set(TARGET_MODULES) == {
        f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")
    }


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_valid_and_reads_back(preset):
    config = make_config(preset)
    assert config.preset == preset
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


def test_epochs_replace_the_steps_of_a_preset():
    config = make_config("tutorial", {"epochs": 2.0})
    assert config.steps is None
    assert config.total_steps(500) == 2 * 63


def test_steps_replace_the_epochs_of_a_preset():
    assert make_config("gpu-24g", {"steps": 7}).total_steps(2000) == 7


def test_a_mistyped_option_names_the_nearest_right_one():
    with pytest.raises(InputError, match="'rank'"):
        make_config("demo", {"rnk": 8})


def test_bounds_come_from_the_fields():
    assert bounds("rank") == (1, 256)
    assert describe_values("rank") == "a whole number from 1 to 256"
    assert describe_values("language") == "one of en, zh"


def test_every_number_has_a_lowest_and_a_highest_value() -> None:
    described = {name: describe_values(name) for name in RunConfig.model_fields}
    assert not [name for name, values in described.items() if "None" in values]


def test_a_config_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        make_config("demo").rank = 3
