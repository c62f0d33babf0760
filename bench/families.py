"""Follows a tiny random model of each family through a run: the table of docs/models.md.

    python bench/families.py [--engine fused] [FAMILY …]

Each is made from its config, trained for two steps, loaded by plain peft, asked, and merged.
Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.support.families import FAMILIES, follow_family


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", metavar="FAMILY", default=[*FAMILIES])
    parser.add_argument("--engine", default="auto")
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    logging.disable(logging.WARNING)
    print("| family | parameters | trained, as planned and by peft | training loss: medcot, model |"
          " test loss before, after, by peft | answers | merged | seconds |")  # fmt: skip
    print("| --- | --: | --: | --: | --: | --- | --- | --: |")
    for family in arguments.families:
        print(follow(family, arguments.engine), flush=True)


def follow(family: str, engine: str) -> str:
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            seen = follow_family(Path(folder), family, engine=engine)
        except Exception as error:  # noqa: BLE001 - a table of what works tells what does not
            return f"| `{family}` | {type(error).__name__}: {error} | | | | | | |"
    cells = [
        f"`{family}`",
        f"{seen.parameters:,}",
        f"{seen.planned:,}, {seen.by_peft:,}",
        f"{seen.first_loss:.4f}, {seen.first_by_peft:.4f}",
        f"{seen.before:.4f}, {seen.after:.4f}, {seen.after_by_peft:.4f}",
        "yes" if seen.answer_tokens == 3 else "no",
        seen.merged,
        f"{time.monotonic() - start:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
