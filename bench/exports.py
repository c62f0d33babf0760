"""Makes and proves exports of a finished run, and prints what the proofs found.

    medcot run --preset demo --out runs/demo
    python bench/exports.py --run runs/demo --to adapter --to merged
    python bench/exports.py --run runs/demo --to gguf --to ollama --to hub

Prints a Markdown row for everything proved, then the time of each format (making and proof, its
processes included). Each GGUF file is also loaded by llama.cpp's server, as ``medcot serve`` does,
and asked the run's fixed question. The hub is the tests' stand-in, on this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from medcot.exporting.formats import Format, parse_formats, parse_quantizations
from medcot.exporting.proof_file import ExportRecord, Part
from medcot.exporting.workflow import ExportOptions, export_run
from medcot.listener import Listener
from medcot.reporting.storage import report_from_json
from medcot.runs.directory import RunDirectory
from medcot.terminal import say

REPOSITORY = "ann/tuned"


class Teller(Listener):
    def say(self, line: Any) -> None:
        say(f"  {line}")


def spent() -> tuple[float, float]:
    """Seconds by the clock, and of the processor in this process and in those that ended."""
    used = [resource.getrusage(one) for one in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.perf_counter(), sum(one.ru_utime + one.ru_stime for one in used)


@contextmanager
def stand_in() -> Iterator[None]:
    """The hub's client meets the stand-in at the hub's address."""
    from tests.support.hub_upload_server import WRITER, serve_uploads

    with serve_uploads() as server:
        os.environ |= {"HF_TOKEN": WRITER, "HF_ENDPOINT": server.url}
        yield
        repo = server.repos[REPOSITORY]
        sizes = sum(map(len, repo["files"].values()))
        say(f"  arrived: {len(repo['files'])} files, {sizes:,} bytes, private {repo['private']}")


def rows(record: ExportRecord, folder: Path) -> Iterator[str]:
    for part in record.parts:
        yield f"| {' | '.join(cells(part, folder))} |"


def cells(part: Part, folder: Path) -> Iterator[str]:
    found = part.comparison
    file = folder / f"model-{part.name.rpartition(' ')[2]}.gguf"
    files = [file] if file.exists() else [one for one in folder.rglob("*") if one.is_file()]
    yield f"{part.name}, by {found.program}"
    yield f"{sum(one.stat().st_size for one in files) / 1e6:.0f}"
    loss = found.loss
    yield f"{round(loss.difference, 4) + 0.0:+.4f}" if loss else "-"
    known = loss is not None and loss.low is not None and loss.high is not None
    yield f"{loss.low:+.4f} to {loss.high:+.4f}" if loss and known else "-"
    yield str(loss.n if loss else 0)
    yield found.outcome
    yield f"{sum(one.identical for one in found.answers)} of {len(found.answers)}"
    yield ", ".join(f"{one.same_characters}/{len(one.run)}" for one in found.answers)


async def ask_server(directory: RunDirectory, file: Path, question: str) -> tuple[str, str]:
    """What llama.cpp's server answers to a question, and its name."""
    import httpx

    from medcot.serving.access import Access
    from medcot.serving.backends import choose_backend, private_folder, running
    from medcot.serving.frontend import make_application
    from medcot.serving.target import Target

    target = Target("gguf", file, directory, directory.config())
    with private_folder() as folder:
        backend = choose_backend(target, folder)
        with running(backend, folder):
            application = make_application(target, Access("token", given=True), backend)
            client = httpx.AsyncClient(
                transport=httpx.ASGITransport(application), base_url="http://front", timeout=None
            )
            async with application.router.lifespan_context(application), client:
                reply = await client.post(
                    "/v1/chat/completions",
                    json={"messages": [{"role": "user", "content": question}]},
                    headers={"Authorization": "Bearer token"},
                )
    message = reply.json()["choices"][0]["message"]
    return message["reasoning_content"] + message["content"], backend.title


def ask_servers(directory: RunDirectory, folder: Path) -> None:
    fixed = report_from_json(directory.read_json("report.json")).fixed_question
    if fixed is None:
        return
    assert fixed.after is not None
    said = fixed.after.thought + fixed.after.answer
    for file in sorted(folder.glob("*.gguf")):
        start, used = spent()
        got, title = asyncio.run(ask_server(directory, file, fixed.question))
        end, later = spent()
        pairs = enumerate(zip(got, said, strict=False))
        same = next((at for at, (a, b) in pairs if a != b), min(len(got), len(said)))
        times = f"{end - start:.0f} s, processor {later - used:.0f} s"
        say(f"  {file.name} in {title}: the first {same} of {len(said)} characters; {times}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make and prove exports of a finished run.")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--to", action="append", default=[])
    parser.add_argument("--quantize", action="append", default=[])
    asked = parser.parse_args()
    os.environ["HF_HUB_DISABLE_XET"] = "1"
    directory, lines = RunDirectory(asked.run), list[str]()
    for name in parse_formats(asked.to):
        formats: tuple[Format, ...] = (name,)
        options = ExportOptions(formats, parse_quantizations(asked.quantize), repository=REPOSITORY)
        say(name)
        with stand_in() if name == "hub" else nullcontext():
            start, used = spent()
            record = export_run(directory, options, Teller())[-1]
            end, later = spent()
        say(f"  {end - start:.0f} s, processor {later - used:.0f} s")
        folder = directory.path / "export" / name
        if name != "hub":
            lines.extend(rows(record, folder))
        if name == "gguf":
            ask_servers(directory, folder)
    say("| export | MB | loss | 95 % interval | rows | outcome | same answers | characters |")
    say("| --- | --: | --: | --- | --: | --- | --: | --- |")
    for line in lines:
        say(line)


if __name__ == "__main__":
    main()
