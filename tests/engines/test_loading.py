"""Where models are found, and which engine loads them."""

from types import SimpleNamespace

import pytest

from medcot.config.schema import choices
from medcot.engines import loading
from medcot.engines.base import Location
from medcot.engines.loading import engine_for, locate
from medcot.errors import InputError
from medcot.planning.engine_traits import TRAITS


@pytest.fixture(autouse=True)
def nothing_known():
    loading._commit_on_hub.cache_clear()
    yield
    loading._commit_on_hub.cache_clear()


@pytest.fixture
def hub(monkeypatch):
    """A hub whose commits the test sets; "" stands for no connection."""
    answers = SimpleNamespace(commit="", asked=0)

    def find_commit(*_):
        answers.asked += 1
        return answers.commit

    monkeypatch.setattr(loading, "find_commit", find_commit)
    return answers


def test_a_lost_connection_is_not_remembered(hub):
    with pytest.raises(InputError, match="--model owner/model"):
        locate("owner/model")
    hub.commit = "a" * 40
    assert locate("owner/model") == Location("owner/model", "a" * 40)


def test_the_hub_is_asked_once_for_a_commit_that_it_knows(hub):
    hub.commit = "a" * 40
    first = locate("owner/model")
    hub.commit = "b" * 40
    assert locate("owner/model") == first
    assert hub.asked == 1
    assert locate("owner/model", "v2").revision == "b" * 40


def test_without_a_connection_the_cached_copy_is_used(hub, monkeypatch):
    monkeypatch.setattr(loading, "_cached_commit", lambda *_: "c" * 40)
    assert locate("owner/model", "v1") == Location("owner/model", "c" * 40, cached=True)


@pytest.mark.parametrize(
    ("engine", "split", "packs", "splits", "replaceable_attention", "extends_cache"),
    [
        ("transformers", False, False, False, True, True),
        ("fused", False, True, False, True, True),
        ("transformers", True, False, True, False, True),
        ("unsloth", False, False, False, False, False),
    ],
)
def test_a_plan_names_its_engine_and_callers_see_traits(
    engine, split, packs, splits, replaceable_attention, extends_cache
):
    traits = engine_for(SimpleNamespace(engine=engine, split=split)).traits
    assert (traits.packs, traits.splits) == (packs, splits)
    assert traits.replaceable_attention is replaceable_attention
    assert traits.extends_cache is extends_cache


def test_every_engine_of_the_config_has_traits_and_a_class():
    named = [name for name in choices("engine") if name != "auto"]
    assert list(TRAITS) == named
    for name, traits in TRAITS.items():
        assert engine_for(SimpleNamespace(engine=name, split=False)).traits is traits


def test_an_unknown_engine_is_refused():
    with pytest.raises(ValueError, match="warp"):
        engine_for(SimpleNamespace(engine="warp", split=False))
