"""Which server runs what, and llama.cpp's own one answering as the run does."""

import asyncio
import sys
import time
from pathlib import Path

import httpx
import pytest

from medcot.errors import InputError
from medcot.hardware.machine import named_machine
from medcot.runs.directory import RunDirectory
from medcot.serving import backends
from medcot.serving.access import Access
from medcot.serving.backends import choose_backend, parse_backend, private_folder, running
from medcot.serving.frontend import make_application
from medcot.serving.target import Target
from tests.serving.conftest import THOUGHT, TUNED_ANSWER
from tests.support.gguf_talker import write_gguf
from tests.support.paths import ROOT

STUB = ROOT / "tests" / "support" / "stub_model_server.py"


@pytest.fixture(scope="module")
def gguf_target(served_run, tmp_path_factory):
    """The tuned talker as an F16 export would have it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(served_run.config().model)
    tuned = PeftModel.from_pretrained(base, served_run.adapter).merge_and_unload()
    file = tmp_path_factory.mktemp("gguf") / "model-F16.gguf"
    write_gguf(tuned, AutoTokenizer.from_pretrained(served_run.adapter), file)
    return Target("gguf", file, served_run, served_run.config())


async def ask_twice(target, backend):
    application = make_application(target, Access("token", given=True), backend)
    transport = httpx.ASGITransport(application)
    body = {"messages": [{"role": "user", "content": "A cold patient. Why?"}]}
    async with (
        application.router.lifespan_context(application),
        httpx.AsyncClient(transport=transport, base_url="http://front") as client,
    ):

        async def once():
            headers = {"Authorization": "Bearer token"}
            answer = await client.post("/v1/chat/completions", json=body, headers=headers)
            return answer.json()

        return await asyncio.gather(once(), once())


def test_llama_cpp_gives_the_answer_of_the_run_two_at_once(gguf_target, monkeypatch):
    monkeypatch.setattr(backends.shutil, "which", lambda _: None)
    with private_folder() as folder:
        backend = choose_backend(gguf_target, folder)
        assert backend.title.startswith("llama.cpp (xllamacpp")
        with running(backend, folder) as process:
            answers = asyncio.run(ask_twice(gguf_target, backend))
            start = time.monotonic()
        assert process.poll() is not None
        assert time.monotonic() - start < 3
    for answer in answers:
        message = answer["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == (THOUGHT, TUNED_ANSWER)
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert answer["usage"]["completion_tokens"] == 8
    assert not folder.exists()


def test_an_installed_llama_server_is_used(gguf_target, tmp_path, monkeypatch):
    """A program of that name, which takes its options and serves the stub."""
    program = tmp_path / "bin" / "llama-server"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\n"
        "import os, sys\n"
        "place = sys.argv[sys.argv.index('--host') + 1]\n"
        f"os.execv({sys.executable!r}, [{sys.executable!r}, {str(STUB)!r}, place])\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    with private_folder() as folder:
        backend = choose_backend(gguf_target, folder)
        assert backend.command[:3] == (str(program), "--model", str(gguf_target.path))
        assert backend.command[5:] == ("--ctx-size", "4096", "--parallel", "2", "--no-webui")
        with running(backend, folder):
            first, second = asyncio.run(ask_twice(gguf_target, backend))
    assert first["choices"] == second["choices"]
    assert first["choices"][0]["message"]["content"] == "done"


@pytest.fixture
def with_vllm(monkeypatch):
    """vLLM, as far as choosing it goes, on a machine with a GPU."""
    found = backends.find_spec
    monkeypatch.setattr(
        backends, "find_spec", lambda name: object() if name == "vllm" else found(name)
    )
    monkeypatch.setattr(backends, "version", lambda name: "0.33.0")
    monkeypatch.setattr(backends, "detect_machine", lambda: named_machine("H100"))


def trained(served_run, tmp_path, **plan):
    directory = RunDirectory(tmp_path / "flu")
    directory.create(served_run.config())
    if plan:
        directory.write_json("plan.json", plan)
    return Target("run", directory.path, directory, directory.config())


def test_vllm_serves_a_run_in_16_bits_with_its_adapter(served_run, tmp_path, with_vllm):
    target = trained(served_run, tmp_path, quantization="none", precision="bf16")
    backend = choose_backend(target, Path("/s"))
    assert backend.title == "vLLM 0.33.0"
    words = backend.command[5:]
    assert words[:3] == (target.config.model, "--uds", "/s/model.sock")
    assert words[words.index("--dtype") :][:2] == ("--dtype", "bfloat16")
    assert f"model={target.adapter}" in words
    assert words[words.index("--max-lora-rank") + 1] == "16"
    assert backend.takes_tokens
    merged = Target("merged", tmp_path, target.directory, target.config)
    assert "--enable-lora" not in choose_backend(merged, Path("/s")).command


@pytest.mark.parametrize("plan", [{"quantization": "4bit"}, {"quantization": "fp8"}, {}])
def test_a_base_that_vllm_would_make_otherwise_is_left_to_transformers(
    served_run, tmp_path, with_vllm, plan
):
    target = trained(served_run, tmp_path, **plan)
    assert choose_backend(target, Path("/s")).title.startswith("transformers")
    with pytest.raises(InputError, match=r"--backend vllm: .*use --backend transformers"):
        choose_backend(target, Path("/s"), "vllm")
    assert choose_backend(
        trained(served_run, tmp_path / "b", quantization="none"), Path("/s"), "transformers"
    ).title.startswith("transformers")


def test_a_server_that_cannot_run_the_model_or_is_missing_is_refused(
    gguf_target, served_run, tmp_path, monkeypatch
):
    with pytest.raises(InputError, match=r"did you mean 'llama\.cpp'"):
        parse_backend("llamacpp")
    with pytest.raises(InputError, match="the export is a GGUF file"):
        choose_backend(gguf_target, tmp_path, "vllm")
    with pytest.raises(InputError, match="it runs GGUF files only"):
        choose_backend(trained(served_run, tmp_path), tmp_path, "llama.cpp")
    with pytest.raises(InputError, match="vLLM is not installed"):
        choose_backend(trained(served_run, tmp_path / "b"), tmp_path, "vllm")
    monkeypatch.setattr(backends, "find_spec", lambda _: None)
    with pytest.raises(
        InputError, match=r"not installed; install them: pip install 'medcot\[serve"
    ):
        choose_backend(gguf_target, tmp_path)
