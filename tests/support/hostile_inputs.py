# ruff: noqa: E501 - inputs are easier to compare on one line each
"""Hostile inputs for every target: valid ones, each spoilt in one way."""

from __future__ import annotations

import gzip
import io
import json
import struct
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from medcot.config.presets import make_config
from tests.support.fuzz_targets import TARGETS

CASE = {
    "id": "1", "lang": "en", "specialty": "cardiology", "source": "own", "Question": "Why?",
    "Complex_CoT": "So.", "Response": "Yes.", "reference": "Yes.",
    "claims": [{"text": "It is so.", "states": ["yes"], "contradicts": ["no"]}],
}  # fmt: skip
QUESTION = {
    "id": "1", "lang": "en", "question": "Which?", "context": "A man.",
    "options": {"A": "Iron", "B": "Zinc"}, "answer_idx": "A",
}  # fmt: skip
TURNS = [("system", "Be brief."), ("user", "Why?"), ("assistant", "<think>So.</think>Yes.")]
CHAT = {
    "id": "1", "messages": [{"role": role, "content": text} for role, text in TURNS],
    "system": None,
}  # fmt: skip
SHAREGPT = {"conversations": [{"from": role, "value": text} for role, text in TURNS]}
LISTED = {"question": "Which?", "choices": ["Iron", "Zinc"], "answer": 1}
SAVED = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": "train"}
MODEL = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 100,
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": False,
}  # fmt: skip
TOKENIZER = {
    "eos_token": "a", "bos_token": {"content": "a"}, "pad_token": None, "unk_token": "a",
    "chat_template": [{"name": "default", "template": "{{ messages[0].content }}"}],
}  # fmt: skip
MANIFEST = {
    "bundle": "0" * 64, "session": 1, "outcome": "done", "exit_code": 0, "notes": ["a"],
    "files": {"run/report.md": {"size": 1, "sha256": "0" * 64}},
}  # fmt: skip

ODD_VALUES: list[Any] = [
    None, True, 0, -1, 2**70, 1e308, float("nan"), float("inf"), "", " ", "\0", "x" * 2_000_000,
    "\ud800", "\u202e\u2066", "\x1b[2J", [], {}, [[]], [None], {"": None}, "../../etc/passwd",
    "2026-13-45", "²",
]  # fmt: skip

NESTED = {"json": b"[" * 200_000, "objects": b'{"a":' * 200_000, "arrays": b"a = " + b"[" * 200_000}


def spoilt(valid: bytes) -> Iterator[bytes]:
    """Yield one valid input spoilt as files are: cut, flipped, recoded, repeated."""
    for share in (0, 1, 3, 5, 7, 9):
        yield valid[: len(valid) * share // 10]
    for at in range(0, len(valid), max(1, len(valid) // 6)):
        yield valid[:at] + bytes([valid[at] ^ 0x80]) + valid[at + 1 :]
        yield valid[:at] + b"\0" + valid[at:]
    yield from (
        valid * 2,
        valid + b"\xff\xfe",
        b"\xef\xbb\xbf" + valid,
        b"\xef\xbb\xbf" * 2 + valid,
    )
    text = valid.decode("utf-8", "replace")
    yield from (text.encode(code, "replace") for code in ("utf-16", "utf-32", "gbk", "cp1252"))
    yield from (valid.replace(b"\n", b"\r"), valid.replace(b" ", b"\xe2\x80\xa8"))
    yield from (gzip.compress(valid), b"PK\x03\x04" + valid, b"<!DOCTYPE html>" + valid)
    yield b"version https://git-lfs.github.com/spec/v1\nsize 9\n"
    yield from (b"\n" * 100_000, b"\0" * 100_000, b'"' * 100_001, b"," * 200_000, b"\xff" * 100_000)
    yield from NESTED.values()
    yield b"x" * 20_000_000


def swapped(valid: Any) -> Iterator[Any]:
    """Yield an object with each field, at any depth, in turn left out or of another kind."""
    if isinstance(valid, dict):
        for name, value in valid.items():
            yield {other: kept for other, kept in valid.items() if other != name}
            yield from (valid | {name: odd} for odd in ODD_VALUES)
            yield from (valid | {name: inner} for inner in swapped(value))
    elif isinstance(valid, list) and valid:
        yield from ([inner, *valid[1:]] for inner in swapped(valid[0]))


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def as_csv(row: dict[str, Any]) -> bytes:
    cells = ",".join('"' + str(value).replace('"', '""') + '"' for value in row.values())
    return f"{','.join(row)}\n{cells}\n".encode("utf-8", "surrogatepass")


def as_parquet(columns: dict[str, Any], **options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, **options)
    return file.getvalue()


def zstd(content: bytes) -> bytes:
    return pa.compress(content, codec="zstd", asbytes=True)


def as_arrow(columns: dict[str, Any], **options: Any) -> bytes:
    table, file = pa.table(columns), io.BytesIO()
    with pa.ipc.new_stream(file, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return file.getvalue()


def arrow_files() -> Iterator[bytes]:
    """Yield Arrow files whose columns could grow, or are of odd types."""
    texts = {name: pa.array(["a"] * 3) for name in ("Question", "Complex_CoT", "Response")}
    yield as_arrow(texts)
    long = pa.array(["x" * 1_000_000] * 3)
    yield from (as_arrow({**texts, "Response": long}, compression=one) for one in ("zstd", "lz4"))
    empty = pa.ListArray.from_arrays(pa.array([0, 1, 2, 2**30], pa.int32()), pa.nulls(2**30))
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([3], pa.int32()), ["x" * 1_000_000])
    views = pa.array(["x" * 1_000_000] * 3, pa.string_view())
    nested = pa.array([{"a": [{"b": "c"}]}] * 3)
    shared = pa.DictionaryArray.from_arrays(pa.array([0] * 3), long.slice(0, 1))
    fixed = pa.array([[1.0] * 1000] * 3, pa.list_(pa.float32(), 1000))
    for column in (empty, runs, views, nested, shared, fixed, pa.nulls(3), pa.array([2**62] * 3)):
        for name in ("Response", "other", "messages"):
            yield as_arrow({**texts, name: column})
    yield as_arrow({"Question": pa.nulls(2**31 - 1)})


def parquet_files() -> Iterator[bytes]:
    """Yield Parquet files whose columns are of odd types, unreadable or huge."""
    texts = {name: pa.array(["a"] * 3) for name in ("Question", "Complex_CoT", "Response")}
    yield as_parquet(texts)
    bad = pa.StringArray.from_buffers(
        3, pa.py_buffer(struct.pack("<4i", 0, 1, 2, 3)), pa.py_buffer(b"\xe9\xff\0")
    )
    columns = [
        pa.array([2**62] * 3, pa.timestamp("us")), pa.array([0] * 3, pa.timestamp("us", "No/Where")),
        pa.array([-(2**31)] * 3, pa.date32()), pa.array([2**62] * 3, pa.duration("s")),
        pa.array([2**40] * 3, pa.time64("ns")), bad, pa.array([b"\xff"] * 3), pa.nulls(3),
        pa.array([[["a"]]] * 3), pa.array([{"text": 1}] * 3), pa.array([[{"text": "a"}]] * 3),
        pa.array([1.5] * 3), pa.array([True] * 3), pa.array(["a"] * 3).dictionary_encode(),
        pa.array(["x" * 5_000_000] * 3), pa.array([[("a", 1)]] * 3, pa.map_(pa.string(), pa.int64())),
    ]  # fmt: skip
    for column in columns:
        for name in ("Response", "claims", "options", "other", "id", "lang"):
            yield as_parquet({**texts, name: column})
    long = pa.array(["x" * 9_000_000]).dictionary_encode()
    many = pa.DictionaryArray.from_arrays(pa.array([0] * 600, pa.int32()), long.dictionary)
    rows = {name: pa.array([f"{n}" for n in range(600)]) for name in texts}
    for compression in ("zstd", "snappy", "gzip"):
        for name in ("Response", "other", "Question"):
            yield as_parquet({**rows, name: many}, compression=compression)
    yield as_parquet({f"c{n}": pa.array(["a"]) for n in range(5000)})


PATTERNS = [
    "(", "[", "a{99999999999}", "(" * 3000, "(" * 400 + ")" * 400, "(a+)+$", "(a|aa)+$", "(a|a)*b",
    "(.*)*x", "(?:a?){60}a{60}", r"(\w+\s?)*$", "((a{1,50}){1,50}){1,50}b", r"(?P<x>a)(?P=x)+$",
    "(?i)(?s)a", "(?<=a*)b", "[\x00-\U0010ffff]" * 100, "\\", "a**", "(?z)", "\\p{L}+", "\\1",
    "(?:" * 900, "x" * 100_000, "[^\\W\\d_]+@(([a-z]+.)+)+$", "^(([a-z])+.)+[A-Z]([a-z])+$", "",
]  # fmt: skip
ANSWERS = [
    "So ", "\n", "Answer: B ", "选", "\\boxed{", "(", "is not A, ", "<answer>", "</think>", "**", "A",
    "\u202e", "\ufdfa", "🏴", "\udcff", '"answer": "', "$", "- ", "A. Iron\n", "Ａ", "是", "\r", "'",
]  # fmt: skip
TEMPLATES = [
    "{{ messages }}", "{{ 'a' * 9999999999 }}", "{{ 9**9**9 }}", "{% for i in range(10**9) %}a{% endfor %}",
    "{{ messages[0].content.__class__.__mro__ }}", "{{ raise_exception('no') }}", "{{ x.y.z }}", "{%",
    "{{ 'a'.center(10**9) }}", "{{ '%1000000000d' % 1 }}", "{{ ('a' * 1000000) ~ ('a' * 1000000) }}",
    "{% set x = 'a' %}{% for i in range(64) %}{% set x = x ~ x %}{% endfor %}{{ x }}",
    "{% set n = namespace(x='a') %}{% for i in range(64) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{% include '/etc/passwd' %}", "{% import 'os' as o %}",
    "{{ cycler.__init__.__globals__ }}", "{{ messages | map(attribute='content') | list | join * 10**8 }}",
    "{{ messages[0].content }}{{ '{:>1000000000}'.format(1) }}", "{{ range(10**8) | list }}", "{{ [0] * 10**9 }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "{{ lipsum(n=10**6) }}",
    "{{ 'a' | indent(10**9) }}", "{{ ('a' * 999999) | replace('a', 'b' * 999999) }}", "(" * 100_000,
    "{{ " + "(" * 5000, "{{ " + "-" * 5000 + "1 }}", "{% if 1 %}" * 3000, "{{ 1 / 0 }}", "{{ messages | tojson(indent=10**9) }}",
    "{{ strftime_now('%Y' * 100000) }}", "{{ 'x'.zfill(10**10) }}", "{{ 'a,' * 400000 }}", "{{ (('a' * 999).split('')) }}",
    "{{ '' | batch(10**9) | list }}", "{{ 'abc' | wordwrap(0) }}", "{{ 10 ** -400 }}", "{{ 7 // 0.0 }}", "{{ 'é\udc00' }}",
    "{% generation %}", "{{ messages | groupby('role') }}", "{{ messages | random }}", "{{ 'a' | filesizeformat }}",
    "{{ 1e308 * 10 }}", "{{ messages | sum }}", "{{ messages | xmlattr }}", "{{ 'x' | urlize }}", "{{ dict(a=1) | dictsort }}",
]  # fmt: skip


def finished_run(name: str) -> bytes:
    folder = Path(str(files("medcot.runs"))) / "finished" / "demo-en"
    path = folder / name
    return path.read_bytes() if path.exists() else b"{}"


def valid_json(target: str) -> Any:
    """Return a valid object for the targets that read JSON, None for others."""
    own = {
        "jsonl": CASE, "questions": QUESTION, "model": MODEL, "tokenizer": TOKENIZER, "manifest": MANIFEST,
        "config": make_config("demo").model_dump(mode="json"),
    }  # fmt: skip
    if target in own or not target.startswith("run/"):
        return own.get(target)
    return json.loads(finished_run(target.removeprefix("run/")).split(b"\n")[0] if target.endswith("l")
                      else finished_run(target.removeprefix("run/")) or b"{}")  # fmt: skip


def hostile_inputs() -> Iterator[tuple[str, bytes]]:
    """Yield (target, input) for all targets."""
    for target in TARGETS:
        value = valid_json(target)
        if value is not None:
            yield from ((target, one) for one in spoilt(as_json(value)))
            yield from ((target, as_json(one)) for one in (value, *swapped(shallow(value))))
    yield from (("json", as_json([one])) for one in swapped(CASE))
    yield from (("csv", one) for one in spoilt(as_csv(CASE)))
    yield from (("csv", as_csv(one)) for one in swapped(CASE))
    yield from (
        ("chat", as_json(one)) for one in (CHAT, SHAREGPT, *swapped(CHAT), *swapped(SHAREGPT))
    )
    yield from (("questions", as_json(one)) for one in swapped(LISTED))
    yield from (("tsv", as_csv(CASE).replace(b",", b"\t", 3)), ("saved", as_json(SAVED)))
    yield from (("saved", as_json(one)) for one in swapped(SAVED))
    yield from (("columns", one) for one in spoilt(b"question=a,answer=b"))
    lines = as_json(CASE) + b"\n"
    for target, packed in (("gzip", gzip.compress(lines)), ("zstd", zstd(as_csv(CASE)))):
        yield from ((target, one) for one in spoilt(packed))
    yield from (("gzip", gzip.compress(one)) for one in (b" " * 30_000_000, b"{}\n" * 9_000_000))
    yield from (("zstd", zstd(one)) for one in (b"a," * 15_000_000, b"a\n" * 9_000_000))
    yield from (("arrow", one) for one in arrow_files())
    yield from (("arrow", one) for one in spoilt(next(arrow_files())))
    yield from (("parquet", one) for one in parquet_files())
    yield from (("parquet", one) for one in spoilt(next(parquet_files())))
    for name, value in make_config("demo").model_dump().items():
        for odd in (
            value,
            "''",
            "'x'",
            "nan",
            "-1",
            "1e400",
            "[]",
            "{}",
            "2026-01-01",
            "9" * 5000,
            "'" + "x" * 99_999,
        ):
            yield "toml", f"{name} = {odd}\n".encode()
            yield "environment", f"{name.upper()}={odd}".encode()
    yield from (("toml", one) for one in spoilt(b'preset = "demo"\nrank = 8\n'))
    for pattern in PATTERNS:
        yield from (
            ("pattern", f"{pattern}\n{text}".encode()) for text in ("", "a" * 30_000, "ab " * 9000)
        )
        claim = {"text": "t", "states": [pattern], "contradicts": [pattern]}
        yield "jsonl", as_json(CASE | {"claims": [claim]})
    yield from (("answer", (part * 100_000).encode("utf-8", "surrogatepass")) for part in ANSWERS)
    yield from (
        ("answer", f"{a}{b}Answer: {c}".encode("utf-8", "surrogatepass"))
        for a in ANSWERS
        for b in ANSWERS[:6]
        for c in "AEZ"
    )
    yield from (("template", one.encode("utf-8", "surrogatepass")) for one in TEMPLATES)
    header = as_json({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})
    weights = struct.pack("<Q", len(header)) + header + b"\0" * 4
    yield from (("weights", one) for one in spoilt(weights))
    for size in (0, 1, 2**31, 2**63, 2**64 - 1):
        yield "weights", struct.pack("<Q", size) + header
    for odd in ODD_VALUES:
        body = as_json({"w": odd})
        yield "weights", struct.pack("<Q", len(body)) + body
        yield "name", str(odd).encode("utf-8", "surrogatepass")
    yield from (
        ("name", one)
        for one in (
            b"sample/",
            b"a/b/c",
            b"/",
            b".",
            b"x" * 300,
            b"~",
            b"-",
            b"a/" * 5000,
            b"\xff/\xfe",
        )
    )


def shallow(value: Any) -> Any:
    """Return an object with its long lists cut, so that it has some dozens of fields."""
    if isinstance(value, dict):
        return {name: shallow(inner) for name, inner in list(value.items())[:40]}
    return [shallow(inner) for inner in value[:1]] if isinstance(value, list) else value
