"""A stop is heard between tokens and between batches, however much is left to do."""

import pytest

from medcot.config.presets import make_config
from medcot.engines import loading as models
from medcot.errors import Cancelled
from medcot.inference.ask import inference_plan
from medcot.inference.generate import model_tools
from medcot.records import Prompt


@pytest.fixture(scope="module")
def loaded(tiny_model):
    config = make_config("demo", {"model": str(tiny_model), "max_new_tokens": 1000})
    return config, models.load_base(config, inference_plan(config))


CALLS = {
    "generate": lambda tools: tools.generate(["Hello there"] * 3),
    "score": lambda tools: tools.score([Prompt("Hello " * n, "there " * 400) for n in range(9)]),
    "options": lambda tools: tools.score_options([("Hello " * 900, ["A", "B"])] * 40),
    "long options": lambda tools: tools.score_options([("Hello " * 900, ["A and", "B or"])] * 40),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("continuous", [True, False], ids=["continuous", "padded"])
def test_a_stop_is_heard_before_the_next_pass(loaded, call, continuous):
    config, model = loaded
    model.batches_continuously.clear()
    if not continuous:
        model.batches_continuously[model.model] = False
    passes, polls = [], []

    def should_stop():
        polls.append(len(passes))
        return len(polls) > 3

    hook = model.model.register_forward_pre_hook(lambda *_: passes.append(1))
    try:
        with pytest.raises(Cancelled):
            CALLS[call](model_tools(model, config, should_stop))
    finally:
        hook.remove()
    assert len(passes) <= 8
    assert polls == sorted(polls)
    # A stop says nothing about whether the model can be batched continuously.
    assert model.batches_continuously.get(model.model) is (None if continuous else False)


@pytest.mark.parametrize("call", CALLS)
def test_a_stop_is_heard_within_a_pass(loaded, call):
    config, model = loaded
    begun, ended = [], []
    hooks = [
        model.model.register_forward_pre_hook(lambda *_: begun.append(1)),
        model.model.register_forward_hook(lambda *_: ended.append(1)),
    ]
    try:
        with pytest.raises(Cancelled):
            CALLS[call](model_tools(model, config, lambda: len(begun) > 0))
    finally:
        for hook in hooks:
            hook.remove()
    assert (len(begun), len(ended)) == (1, 0)


def test_padded_answers_are_the_same_with_and_without_polling(loaded):
    config, model = loaded
    model.batches_continuously[model.model] = False
    short = config.model_copy(update={"max_new_tokens": 8})
    asked = []
    polled = model_tools(model, short, lambda: bool(asked.append(1))).generate(["Hello"] * 2)
    assert polled == model_tools(model, short).generate(["Hello"] * 2)
    assert len(asked) >= 8
