"""Write the generated parts of both READMEs, docs/options.md, the figures, and the pins for uv.

    .venv/bin/python .ci/readme.py        (or: make readme)

A part stands between ``<!-- made by make readme: NAME -->`` and ``<!-- end -->``. What it says
comes from the bundled runs and from the code; tests/test_documents.py fails where a document
differs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from unicodedata import east_asian_width

from medcot.catalog import say
from medcot.config.presets import PRESETS, make_config
from medcot.config.schema import BUNDLED_MODEL, RunConfig, describe_values, option_name
from medcot.reporting.schema import FixedQuestion, Measure, Report
from medcot.reporting.storage import read_report
from medcot.reporting.wording import compare_values, format_value, word_opening
from medcot.runs.history import bundled_run

PROJECT = Path(__file__).resolve().parents[1]
READMES = {"en": "README.md", "zh": "README.zh-CN.md"}
PART = re.compile(r"(<!-- made by make readme: (\w+) -->\n).*?(<!-- end -->)", flags=re.DOTALL)
PINS = re.compile(r"(constraint-dependencies = \[\n).*?(^\])", flags=re.DOTALL | re.MULTILINE)

MEASURES: tuple[Measure, ...] = ("closed_rate", "finished_rate", "nll", "mcq")
"""The rows of the table, in the order of what one sees first."""

WORDS = {
    "en": {
        "heads": "| | before | after | difference (95 % interval) | n | verdict |",
        "run": "SmolLM2-135M, {steps} steps of {batch} short cases ({tokens:,} tokens) on {cores}"
        " CPU cores, {date}. By `{command}`, which you can repeat.",
        "seeds": " The table is about the adapter that was kept. About the recipe: {said}",
        "chinese": "The same in Chinese, `{command}`: {opening}{said}"
        " Answers that ended by themselves: {before}, then {after}.",
        "chinese_before": "In Chinese, `medcot run --preset demo --language zh` before the preset"
        " changed to fewer rows and questions ({date}): {opening} Answers that ended by themselves:"
        " {before}, then {after}.",
        "before": "Before training",
        "after": "After training",
        "cut": "… cut off at {limit} tokens, thought not closed",
        "open": "the thought was never closed",
        "closed": "thought closed, answer ended: {tokens} tokens",
        "still_cut": "… cut off at {limit} tokens",
        "right": "By the rubric, this answer is right.",
        "wrong": "By the rubric, this answer is not right.",
        "alt": "The same unseen question before and after a fine-tune of minutes on a CPU",
        "presets": "| preset | model | rows | length | for |\n| --- | --- | ---: | --- | --- |",
        "count": "{before} → {after} of {n}",
        "bundled": "SmolLM2-135M (bundled)",
    },
    "zh": {
        "heads": "| | 训练前 | 训练后 | 差值（95% 区间） | n | 结论 |",
        "run": "SmolLM2-135M，{steps} 步，每步 {batch} 个短病例（共 {tokens:,} 个词元），"
        "{cores} 个 CPU 核心，{date}。由 `{command}` 得到，任何人都可以重做。",
        "seeds": "表中是保留下来的适配器。关于整个配方：{said}",
        "chinese": "中文的同一次运行（`{command}`）：{opening}{said}"
        "自行结束的回答：训练前 {before}，训练后 {after}。",
        "chinese_before": "中文的一次运行（`medcot run --preset demo --language zh`，{date}，"
        "当时预设的行数和题数更多）：{opening}"
        "自行结束的回答：训练前 {before}，训练后 {after}。",
        "before": "训练前",
        "after": "训练后",
        "cut": "……到 {limit} 个词元被截断，思考过程始终没有写完",
        "open": "思考过程始终没有写完",
        "closed": "思考写完，回答自行结束：共 {tokens} 个词元",
        "still_cut": "……到 {limit} 个词元被截断",
        "right": "按评分标准，这个回答正确。",
        "wrong": "按评分标准，这个回答不正确。",
        "alt": "同一个没见过的问题：在 CPU 上微调几分钟之前与之后",
        "presets": "| 预设 | 模型 | 行数 | 长度 | 适用于 |\n| --- | --- | ---: | --- | --- |",
        "count": "{n} 个中 {before} → {after} 个",
        "bundled": "SmolLM2-135M（自带）",
    },
}

MACHINES = {
    "demo": ("any machine, no GPU, no network", "任何机器，不需要 GPU 和网络"),
    "tutorial": ("one GPU, by unsloth as in the tutorial", "一块 GPU，按教程用 unsloth"),
    "kaggle-t4": ("both T4s of a Kaggle session", "Kaggle 会话的两块 T4"),
    "kaggle-t4x2": ("the same, by an older name", "同上，旧名称"),
    "gpu-24g": ("a GPU of 24 GiB", "24 GiB 的 GPU"),
    "gpu-80g": ("a GPU of 80 GiB", "80 GiB 的 GPU"),
}
"""Each preset's machine, in English and Chinese."""

OPTIONS_HEAD = """# All options

Made by `make readme` from `config.schema.RunConfig`. The command line takes them as `--rank 8`, the
environment as `MEDCOT_RANK=8`, a file as `rank = 8` (`--config run.toml`), the notebook after `--`.
The command line takes precedence over the environment, the environment over the file, the file over
the preset. The defaults below are those before a preset; `medcot config --preset NAME` prints what
a preset makes of them, as a file for `--config`.

`medcot config --schema > run.schema.json` writes the JSON schema of such files,
`medcot config --schema study` that of files for `medcot study`. Editors with Taplo complete and
check a file whose first line is `#:schema ./run.schema.json` (from Taplo's documentation).

| option | values | default | what it is |
| --- | --- | --- | --- |
"""


def main() -> None:
    """Write what is out of date."""
    for name, text in make_documents().items():
        path = PROJECT / name
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(name)


def make_documents() -> dict[str, str]:
    """Return every document that has a generated part, as it should be, by its name."""
    made = {f"docs/figures/result-{one}.svg": draw_result(one) for one in READMES}
    made["docs/options.md"] = OPTIONS_HEAD + "".join(f"{row}\n" for row in list_options())
    for language, name in READMES.items():
        parts = {
            "result": show_result(language),
            "chinese": tell_chinese_run(language),
            "presets": list_presets(language),
        }
        made[name] = PART.sub(
            lambda found, parts=parts: f"{found[1]}{parts[found[2]]}\n{found[3]}", read(name)
        )
    pins = "".join(f'  "{pin}",\n' for pin in read_pins())
    made["pyproject.toml"] = PINS.sub(
        lambda found: f"{found[1]}{pins}{found[2]}", read("pyproject.toml")
    )
    return made


def read(name: str) -> str:
    """Return the text of a file of the project."""
    return (PROJECT / name).read_text(encoding="utf-8")


def read_pins() -> list[str]:
    """Return the pins of constraints.txt."""
    return [line for line in read("constraints.txt").splitlines() if "==" in line]


def report_of(language: str) -> Report:
    """Return the report of the bundled run in ``language``."""
    report = read_report(bundled_run(language).path)
    assert report is not None
    return report


def show_result(language: str) -> str:
    """Return what the bundled English run found: a sentence, a table, and what the run was."""
    report, words = report_of("en"), WORDS[language]
    rows = [words["heads"], "| --- | ---: | ---: | ---: | ---: | --- |"]
    for measure in MEASURES:
        paired = report.paired.of(measure)
        if paired is None:
            continue
        before, after, change, span, _, n = compare_values(report, measure, paired, language)
        better = "lower" if measure == "nll" else "higher"
        verdict = say(f"called_{paired.verdict(better).replace(' ', '_')}", language)
        shown = f"{change} ({span})" if language == "en" else f"{change}（{span}）"
        name = say(f"measure_{measure}", language)
        rows.append(f"| {name} | {before} | {after} | {shown} | {n} | {verdict} |")
    return "\n".join(
        [f"**{word_opening(report, language)}**", "", *rows, "", describe_run(language)]
    )


def describe_run(language: str) -> str:
    """Return the size, the machine and the date of the bundled English run."""
    path, report = bundled_run("en").path, report_of("en")
    config = report.config
    training, environment, status = (
        json.loads((path / name).read_text(encoding="utf-8"))
        for name in ("training.json", "environment.json", "status.json")
    )
    text, command, said = WORDS[language]["run"], "medcot run --preset demo", ""
    if config.seeds > 1:
        text += WORDS[language]["seeds"]
        command += f" --seeds {config.seeds}"
        between = "" if language == "zh" else " "
        said = between.join(one.text(language) for one in report.verdict.messages.nll)
    return text.format(
        command=command,
        said=said,
        steps=training["steps"],
        batch=config.batch,
        tokens=training["tokens"],
        cores=environment["machine"]["cpu_cores"],
        date=status["at"][:10],
    )


def tell_chinese_run(language: str) -> str:
    """Return in two sentences what the bundled Chinese run found, and if the preset was another."""
    report = report_of("zh")
    seeds, command = report.config.seeds, "medcot run --preset demo --language zh"
    same = report.config == make_config("demo", {"language": "zh", "seeds": seeds})
    said, between = "", "" if language == "zh" else " "
    if seeds > 1:
        command += f" --seeds {seeds}"
        said = "".join(f"{between}{one.text(language)}" for one in report.verdict.messages.nll)
    words = WORDS[language]["chinese" if same else "chinese_before"]
    status = json.loads((bundled_run("zh").path / "status.json").read_text(encoding="utf-8"))
    before, after = (
        format_value("finished_rate", side.finished_rate) for side in (report.before, report.after)
    )
    opening = word_opening(report, language)
    return words.format(
        opening=opening, before=before, after=after, date=status["at"][:10], command=command,
        said=said,
    )  # fmt: skip


def list_presets(language: str) -> str:
    """Return the table of presets."""
    words, rows = WORDS[language], list[str]()
    for name in PRESETS:
        config = make_config(name)
        if config.epochs:
            length = f"{config.epochs:g} epoch" if language == "en" else f"{config.epochs:g} 轮"
        else:
            length = f"{config.steps} x {config.batch}"
            length += " rows" if language == "en" else " 行"
        model = config.model.rpartition("/")[2]
        model = words["bundled"] if config.model == BUNDLED_MODEL else model
        machine = MACHINES[name][language == "zh"]
        rows.append(f"| `{name}` | {model} | {config.samples:,} | {length} | {machine} |")
    return "\n".join([words["presets"], *rows])


def list_options() -> Iterator[str]:
    """Return a table row for each option."""
    for name, field in RunConfig.model_fields.items():
        default = "" if field.default in (None, "", ()) else f"`{field.default}`"
        values = describe_values(name).replace("|", r"\|")
        yield f"| `{option_name(name)}` | {values} | {default} | {field.description} |"


# The picture: one question of the fixed kind, both answers, and three measures.

WIDTH, MARGIN, LINE = 960, 24, 22
STYLE = """\
  text {
    font: 15px system-ui, "Noto Sans", "Noto Sans CJK SC", "Microsoft YaHei", sans-serif;
    fill: #1f2933;
  }
  .dim { fill: #5f6978 } .bold { font-weight: 650 } .big { font-size: 21px; font-weight: 650 }
  .page { fill: #ffffff } .card { fill: #f4f6f8; stroke: #d4d8de }
  .good { fill: #2f7d55 } .warn { fill: #9a5a0e } .blue { fill: #2f6fb0 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e4e8ed } .dim { fill: #9aa5b4 } .page { fill: #14181d }
    .card { fill: #20262e; stroke: #3a424d }
    .good { fill: #6cc596 } .warn { fill: #e0a458 } .blue { fill: #7db4e8 }
  }
"""


def draw_result(language: str) -> str:
    """Return the picture of the bundled English run, with labels in ``language``."""
    report, words = report_of("en"), WORDS[language]
    fixed = report.fixed_question
    assert fixed is not None
    top = MARGIN + 8
    shapes: list[str] = []
    for line in wrap(fixed.question, WIDTH - 2 * MARGIN):
        shapes.append(write(MARGIN, top, line, "dim"))
        top += LINE
    columns = [draw_side(fixed, report, side, language) for side in ("before", "after")]
    height = LINE * max(len(one) for one in columns) + 32
    wide = (WIDTH - 3 * MARGIN) / 2
    for index, lines in enumerate(columns):
        left = MARGIN + index * (wide + MARGIN)
        shapes.append(draw_card(left, top - 6, wide, height))
        for row, (kind, line) in enumerate(lines):
            shapes.append(write(left + 16, top + 26 + LINE * row, line, kind))
    top += height + 14
    tiles, wide = draw_tiles(report, language), (WIDTH - 4 * MARGIN) / 3
    for index, (name, values, verdict, kind) in enumerate(tiles):
        left = MARGIN + index * (wide + MARGIN)
        shapes.append(draw_card(left, top, wide, 88))
        shapes.append(write(left + 16, top + 24, name, "dim"))
        shapes.append(write(left + 16, top + 51, values, "big"))
        shapes.append(write(left + 16, top + 75, verdict, f"bold {kind}"))
    whole = top + 88 + MARGIN
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {whole}" role="img"'
        f' lang="{"zh-CN" if language == "zh" else "en"}">\n<title>{words["alt"]}</title>\n'
    )
    page = f'<rect class="page" width="{WIDTH}" height="{whole}" rx="10"/>'
    return f"{head}<style>\n{STYLE}</style>\n{page}\n" + "\n".join(shapes) + "\n</svg>\n"


def draw_side(
    fixed: FixedQuestion, report: Report, side: str, language: str
) -> list[tuple[str, str]]:
    """Return the lines of one answer, each with its class."""
    words, answer = WORDS[language], getattr(fixed, side)
    wide = (WIDTH - 3 * MARGIN) / 2 - 32
    lines = [("big", words[side])]
    for key, text in (("thought", answer.thought), ("response", answer.answer)):
        if text.strip():
            lines.append(("bold blue", say(key, language)))
            lines += [("", line) for line in wrap(" ".join(text.split()), wide)[:8]]
    limit = report.config.max_new_tokens
    if answer.closed and answer.finished:
        last = ("good", words["closed"].format(tokens=answer.tokens))
    elif answer.closed:
        last = ("warn", words["still_cut"].format(limit=limit))
    else:
        last = ("warn", words["open" if answer.finished else "cut"].format(limit=limit))
    lines.append((f"bold {last[0]}", last[1]))
    if side == "after":
        lines.append(("dim", words["right" if fixed.passed.after else "wrong"]))
    return lines


def draw_tiles(report: Report, language: str) -> Iterator[tuple[str, str, str, str]]:
    """Return name, values, verdict and class of the three measures at the picture's foot."""
    measures: tuple[Measure, ...] = ("closed_rate", "nll", "mcq")
    for measure in measures:
        paired = report.paired.of(measure)
        assert paired is not None
        before, after, *_ = compare_values(report, measure, paired, language)
        verdict = paired.verdict("lower" if measure == "nll" else "higher")
        called = say(f"called_{verdict.replace(' ', '_')}", language)
        kind = {"improved": "good", "no evidence": "dim", "worse": "warn"}[verdict]
        values = f"{before} → {after}"
        if measure == "closed_rate":
            counts = (
                round(paired.n * (side.closed_rate or 0)) for side in (report.before, report.after)
            )
            before, after = map(str, counts)
            values = WORDS[language]["count"].format(before=before, after=after, n=paired.n)
        yield say(f"measure_{measure}", language), values, called, kind


def draw_card(left: float, top: float, wide: float, high: float) -> str:
    """Return a box with round corners."""
    return (
        f'<rect class="card" x="{left:g}" y="{top:g}" width="{wide:g}" height="{high:g}" rx="7"/>'
    )


def write(left: float, top: float, line: str, kind: str) -> str:
    """Return a line of text."""
    return f'<text class="{kind}" x="{left:g}" y="{top:g}">{escape(line, quote=False)}</text>'


def wrap(text: str, wide: float) -> list[str]:
    """Break ``text`` into lines of at most ``wide`` pixels, as most typefaces would need."""
    lines, line = list[str](), ""
    for piece in re.findall(
        r"[\u3000-\u9fff\uff00-\uffef]|[^\s\u3000-\u9fff\uff00-\uffef]+\s*", text
    ):
        if measure_text(line + piece.rstrip()) > wide and line:
            lines.append(line.rstrip())
            line = ""
        line += piece
    return [*lines, line.rstrip()] if line else lines


def measure_text(text: str) -> float:
    """Estimate the width of ``text`` in pixels, rather too wide than too narrow."""
    return sum(15 if east_asian_width(one) in "WF" else 7.9 for one in text)


if __name__ == "__main__":
    main()
