"""Makes GGUF files by llama.cpp's converter and quantiser, and proves them with llama.cpp."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from medcot.catalog import Message
from medcot.data.prompts import find_marks
from medcot.errors import InputError, RunFailed, one_line
from medcot.exporting import checks
from medcot.exporting.converter import LONGEST_S, find_converter
from medcot.exporting.formats import FILE_TYPES, Quantization
from medcot.exporting.measure import GreedyAnswer, LoadFailed, Measured, Progress
from medcot.exporting.proof_set import ProofSet
from medcot.exporting.run_model import RunModel

PROGRAM = "llama-quantize"
"""llama.cpp's own program; used where it is installed, else its library."""

QUESTION = "{{ .Prompt }}"
"""Where Ollama's template takes the question."""


def require_llama() -> None:
    """Check that llama.cpp is installed.

    Raises:
        InputError: It is not.
    """
    missing = [name for name in ("cyllama", "sentencepiece") if find_spec(name) is None]
    if missing:
        needs = "install them: pip install 'medcot[export]'"
        raise InputError("--to gguf", f"{' and '.join(missing)} not installed", needs)


def file_name(quantization: Quantization) -> str:
    """Return the name of a GGUF file in its export."""
    return f"model-{quantization}.gguf"


def convert(merged: Path, target: Path) -> None:
    """Convert a merged model to F16 by llama.cpp's own converter.

    Raises:
        RunFailed: The converter does not know the architecture or the tokenizer.
    """
    command = [sys.executable, str(find_converter()), str(merged), "--outfile", str(target)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*command, "--outtype", "f16"],
        env=environment, capture_output=True, text=True, timeout=LONGEST_S, check=False,
    )  # fmt: skip
    if done.returncode or not target.exists():
        raise RunFailed(
            "export",
            Message("export_not_converted", {"why": _last_line(done.stderr)}),
            Message("needs_other_format"),
        )


def quantize(source: Path, target: Path, quantization: Quantization) -> None:
    """Quantise a F16 file by ``llama-quantize``, or by llama.cpp's library without it.

    Raises:
        RunFailed: llama.cpp refuses.
    """
    threads = _threads()
    if (program := shutil.which(PROGRAM)) is not None:
        command = [program, str(source), str(target), quantization, str(threads)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LONGEST_S, check=False
        )
        why = _last_line(done.stderr) if done.returncode else ""
    else:
        request = {"do": "quantize", "file": str(source), "target": str(target),
                   "file_type": FILE_TYPES[quantization], "threads": threads}  # fmt: skip
        try:
            list(_ask_llama(request))
            why = ""
        except LoadFailed as error:
            why = str(error)
    if why or not target.exists():
        values = {"quantization": quantization, "why": one_line(why, 120)}
        raise RunFailed(
            "export", Message("export_not_quantized", values), Message("needs_other_format")
        )


def measure_gguf(
    file: Path, asked: ProofSet, progress: Progress
) -> tuple[Measured, Mapping[str, Any]]:
    """Load a GGUF by llama.cpp and ask it the proof set; also return what it says of itself.

    Raises:
        LoadFailed: llama.cpp cannot load or run it.
    """
    request = {
        "do": "measure",
        "file": str(file),
        "rows": [(row.prompt_ids, row.completion_ids) for row in asked.rows],
        "questions": [question.prompt_ids for question in asked.questions],
        "texts": [(row.prompt, row.completion) for row in asked.rows],
        "ends": asked.end_ids,
        "bos": asked.bos_token,
        "max_new_tokens": asked.max_new_tokens,
        "threads": _threads(),
    }
    facts: Mapping[str, Any] = {}
    losses: list[float] = []
    answers: list[GreedyAnswer] = []
    for reply in _ask_llama(request):
        if "facts" in reply:
            facts = reply["facts"]
            continue
        if "loss" in reply:
            losses.append(reply["loss"])
        else:
            answers.append(GreedyAnswer(tuple(reply["ids"]), reply["finished"]))
        progress(len(losses) + len(answers), len(asked.rows) + len(asked.questions))
    precision = f"float32, {file.stem.removeprefix('model-')} weights"
    named = f"llama.cpp (cyllama {version('cyllama')})"
    return Measured(tuple(losses), tuple(answers), named, precision), facts


def check_gguf(model: RunModel, facts: Mapping[str, Any], asked: ProofSet) -> Iterator[Message]:
    """Compare what a GGUF says of itself with the run: tokens, ends, template, architecture."""
    metadata, own = facts["metadata"], model.tokenizer
    if facts["eos"] != own.eos_token_id:
        yield checks.end_differs(*own.convert_ids_to_tokens([facts["eos"], own.eos_token_id]))
    if gone := sorted(set(asked.end_ids) - set(facts["ends"])):
        yield Message("proof_end_not_named", {"token": ", ".join(own.convert_ids_to_tokens(gone))})
    if metadata.get("tokenizer.chat_template", "") != asked.template:
        yield Message("proof_template_differs")
    for row, (prompt, completion) in zip(asked.rows, facts["tokens"], strict=True):
        if (prompt, completion) != (list(row.prompt_ids), list(row.completion_ids[:-1])):
            yield Message("proof_tokens_differ", {"row": row.id})
            break
    yield from _check_architecture(model, metadata)


def _check_architecture(model: RunModel, metadata: Mapping[str, str]) -> Iterator[Message]:
    config, kind = model.text_config, metadata.get("general.architecture", "")
    rope = getattr(config, "rope_parameters", None) or {}
    expected = {
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": getattr(config, "num_key_value_heads", None),
        "rope.freq_base": rope.get("rope_theta", getattr(config, "rope_theta", None)),
        "attention.layer_norm_rms_epsilon": getattr(config, "rms_norm_eps", None),
    }
    for name, value in expected.items():
        found = metadata.get(f"{kind}.{name}")
        if found is None or value is None:
            continue
        if abs(float(found) - float(value)) > 1e-3 * abs(float(value)):
            yield checks.setting_differs(f"{kind}.{name}", found, value)


def _ask_llama(request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the replies of :mod:`medcot.exporting.llama_process`.

    Raises:
        LoadFailed: The process ended without an answer.
    """
    # -P: this folder's modules must not stand in for those of other packages.
    command = [sys.executable, "-P", str(Path(__file__).with_name("llama_process.py"))]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with suppress(BrokenPipeError):
                process.stdin.write(json.dumps(request))
                process.stdin.close()
            for line in process.stdout:
                yield json.loads(line)
            if process.wait():
                said.seek(0)
                raise LoadFailed(_last_line(said.read()) or f"ended with {process.returncode}")
        finally:
            if process.poll() is None:
                process.kill()


def _threads() -> int:
    return max(1, min(os.cpu_count() or 1, int(os.environ.get("OMP_NUM_THREADS") or 16)))


def _last_line(text: str) -> str:
    lines: Sequence[str] = [line for line in text.strip().splitlines() if line.strip()]
    return one_line(lines[-1], 120) if lines else ""


def _template(model: RunModel, around: tuple[str, str]) -> str:
    """Return the run's prompt as Ollama's template; llama.cpp adds the start token by itself."""
    before, after = around
    return f"{before.removeprefix(model.added_start)}{QUESTION}{after}"


def make_modelfile(
    model: RunModel, folder: Path, quantization: Quantization, around: tuple[str, str]
) -> None:
    """Write the Modelfile: the run's prompt as template, its end tokens as stops, greedy.

    Args:
        around: The run's prompt before and after the question.
    """
    tokens = model.tokenizer.convert_ids_to_tokens(list(model.end_ids))
    stops = "".join(f"PARAMETER stop {json.dumps(one, ensure_ascii=False)}\n" for one in tokens)
    begins = (
        f"# begins inside the thought and closes it with {find_marks(around[1]).closes.strip()}.\n"
        if model.config.thinks
        else "# has no thought.\n"
    )
    text = (
        "# Research output, not medical advice: what this model says may be wrong or harmful.\n"
        "# The template is the prompt that the model was trained and scored with; the answer\n"
        f"{begins}"
        f"FROM ./{file_name(quantization)}\n"
        f'TEMPLATE """{_template(model, around)}"""\n'
        f"{stops}"
        "PARAMETER temperature 0\n"
        "PARAMETER repeat_penalty 1\n"
        f"PARAMETER num_predict {model.config.max_new_tokens}\n"
        f"PARAMETER num_ctx {max(2048, model.config.max_length + model.config.max_new_tokens)}\n"
    )
    (folder / "Modelfile").write_text(text, encoding="utf-8")


def check_modelfile(
    model: RunModel, folder: Path, asked: ProofSet, around: tuple[str, str]
) -> Iterator[Message]:
    """Read the Modelfile back: its template must give the run's prompts, its stops the ends.

    A run may have no test row that is a question alone; the template is compared all the same.

    Args:
        around: The run's prompt before and after the question.
    """
    text = (folder / "Modelfile").read_text(encoding="utf-8")
    source = re.search(r"^FROM \./(.+)$", text, re.MULTILINE)
    if source is None or not (folder / source[1]).is_file():
        yield checks.setting_differs(
            "Modelfile, FROM", source and source[1], "a file of this folder"
        )
    template = re.search(r'^TEMPLATE """(.*?)"""$', text, re.MULTILINE | re.DOTALL)
    found = template[1] if template else ""
    rows = [row.prompt.removeprefix(model.added_start) for row in asked.rows if row.single]
    before, _, after = found.partition(QUESTION)
    of_rows = all(one.startswith(before) and one.endswith(after) for one in rows)
    if found != _template(model, around) or not of_rows:
        yield Message("proof_template_differs")
    stops = {json.loads(one) for one in re.findall(r"^PARAMETER stop (.+)$", text, re.MULTILINE)}
    wanted = model.tokenizer.convert_ids_to_tokens(list(model.end_ids))
    if gone := sorted(set(wanted) - stops):
        yield Message("proof_end_not_named", {"token": ", ".join(gone)})
