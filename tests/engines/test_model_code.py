"""Code that comes with a model never runs, and nobody is asked whether it may."""

import ast
from pathlib import Path

import medcot

LOADERS = ("AutoTokenizer", "AutoModelForCausalLM", "AutoConfig", "FastLanguageModel")


def test_every_loader_of_a_model_refuses_remote_code():
    found = 0
    for path in Path(medcot.__file__).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for call in ast.walk(ast.parse(text)):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                continue
            owner = ast.unparse(call.func.value)
            if call.func.attr == "from_pretrained" and owner in LOADERS:
                found += 1
                given = {k.arg or ast.unparse(k.value): ast.unparse(k.value) for k in call.keywords}
                # These mappings hold trust_remote_code=False, as the tests below show.
                spread = {"where.options", "self.location.options", "options"} & set(given)
                refused = given.get("trust_remote_code") == "False"
                assert spread or refused, f"{path}:{call.lineno}"
        assert "trust_remote_code=True" not in text
    assert found >= 7


def test_the_options_of_a_location_refuse_remote_code():
    from medcot.engines.base import Location

    assert Location("folder").options["trust_remote_code"] is False
