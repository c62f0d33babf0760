"""One fit of a tiny model, for the tests of every engine."""

from dataclasses import replace

from transformers import AutoTokenizer

from medcot.config.presets import make_config
from medcot.data.prompts import render
from medcot.data.tokenization import chat_template, encode
from medcot.engines import loading as models
from medcot.hardware.machine import detect_machine
from medcot.planning.model_specs import find_model_spec
from medcot.planning.plan import make_plan
from medcot.runs.directory import RunDirectory
from medcot.training.fit import fit
from tests.support.fakes import make_case


def make_rows(tiny_model):
    """Twelve short cases as tokens."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    chat = chat_template(tokenizer)
    cases = [make_case(number) for number in range(12)]
    return encode(tokenizer, {case.id: render(case, "chat", chat) for case in cases})


class Training:
    """One fit of the tiny model in a folder, ready to be gone on with."""

    def __init__(self, folder, model, rows, precision=None, **changes):
        values = {
            "model": str(model),
            "steps": 6,
            "save_steps": 2,
            "learning_rate": 2e-2,
            "batch": 4,
        }
        self.config = make_config("demo", values | changes)
        self.rows = rows
        self.directory = RunDirectory(folder)
        if not self.directory.exists():
            self.directory.create(self.config)
        shape = find_model_spec(self.config)
        self.plan = make_plan(self.config, detect_machine(), shape, len(rows), 60.0, 80)
        self.plan = replace(self.plan, precision=precision or self.plan.precision)
        self.loaded = models.load_base(self.config, self.plan)
        models.add_adapter(self.loaded, self.config, self.plan)

    def fit(self, on_event=lambda event: None, should_stop=lambda: False, plan=None):
        return fit(
            self.loaded, self.rows, self.config, plan or self.plan, self.directory,
            on_event, should_stop,
        )  # fmt: skip

    def losses(self):
        return [row["loss"] for row in self.directory.rows(self.directory.events)]
