"""The demo has rows to train on in both of the project's languages."""

import pytest

from medcot.config.presets import make_config
from medcot.hardware.machine import Machine
from medcot.pipeline.prepare import plan_only


@pytest.mark.parametrize("language", ["en", "zh"])
def test_no_bundled_row_is_too_long_for_the_demo(language):
    config = make_config("demo", {"language": language})
    plan = plan_only(config, Machine((), 2, 16.0, "Linux x86_64"))
    # An English row is seen once at most; the Chinese cases are fewer.
    assert plan.epochs <= (1 if language == "en" else 2)
