"""Whatever the bytes, every loader and parser returns or refuses them in one line."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.fuzz_targets import CONFIG, TARGETS, run_target
from tests.support.hostile_inputs import (
    CASE,
    MANIFEST,
    MODEL,
    QUESTION,
    TOKENIZER,
    as_csv,
    parquet_files,
)

SEEDS = {
    "jsonl": json.dumps(CASE), "json": json.dumps([CASE]), "questions": json.dumps(QUESTION),
    "csv": as_csv(CASE).decode(), "model": json.dumps(MODEL), "tokenizer": json.dumps(TOKENIZER),
    "manifest": json.dumps(MANIFEST), "config": CONFIG.decode(), "run/config.json": CONFIG.decode(),
    "toml": 'preset = "demo"\nrank = 8\nmcq = ["sample"]\n', "environment": "RANK=8",
    "template": "{% for m in messages %}{{ m.content | trim }}{% endfor %}", "name": "a/b",
    "pattern": "a+b|[c-d]{2,3}\nabab", "answer": "So the answer is **B**. Not A.",
}  # fmt: skip

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
"""What JSON can hold."""


def fields_of(seed: str) -> list[str]:
    try:
        found = json.loads(seed)
    except ValueError:
        return []
    return list(found) if isinstance(found, dict) else []


@st.composite
def inputs(draw: st.DrawFn, name: str) -> bytes:
    """A seed with a field of another kind or some bytes changed, or anything."""
    seed = SEEDS.get(name, "{}")
    kind = draw(st.sampled_from(["field", "bytes", "any", "json"]))
    if kind == "field" and (fields := fields_of(seed)):
        return json.dumps(json.loads(seed) | {draw(st.sampled_from(fields)): draw(VALUES)}).encode()
    if kind == "json":
        return json.dumps(draw(VALUES)).encode()
    if kind == "any":
        return draw(st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode()))
    content = seed.encode() if name != "parquet" else next(parquet_files())
    at = draw(st.integers(0, len(content)))
    return content[:at] + draw(st.binary(max_size=6)) + content[at + draw(st.integers(0, 6)) :]


@pytest.mark.parametrize("name", TARGETS)
def test_every_input_is_read_or_refused_in_one_line(name: str) -> None:
    @settings(
        max_examples=25, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(content=inputs(name))
    def check(content: bytes) -> None:
        run_target(name, content)

    check()
