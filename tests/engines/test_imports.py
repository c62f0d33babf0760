"""The collector during imports: it rests, and never sets a model apart."""

import gc
import sys

import pytest

from medcot.engines.imports import collector_paused


def test_the_collector_rests_during_imports_and_works_afterwards():
    with collector_paused():
        assert not gc.isenabled()
    with pytest.raises(ImportError), collector_paused():
        raise ImportError
    assert gc.isenabled()


def test_who_had_it_switched_off_finds_it_so():
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize("loaded", [False, True])
def test_imports_are_set_apart_unless_a_model_may_be_among_them(loaded, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", object())
    if not loaded:
        monkeypatch.delitem(sys.modules, "peft")
    frozen = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(1))
    with collector_paused():
        monkeypatch.setitem(sys.modules, "peft", object())
    assert len(frozen) == (0 if loaded else 1)
