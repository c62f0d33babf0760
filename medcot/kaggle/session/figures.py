"""Write a report's figures as PNG, which Kaggle shows: ``python -m ... RUN FOLDER``.

A separate program, because it needs a package that the kernel has installed only now.
"""

from __future__ import annotations

import sys
from pathlib import Path

SCALE = 2.0
"""Pixels for each unit of a figure, for sharp text."""


def write_pngs(run: Path, folder: Path) -> list[Path]:
    """Draw each figure of ``run`` into ``folder``, with English words; return the new files."""
    import vl_convert

    written = []
    for figure in sorted((run / "figures").glob("*.svg")):
        if figure.stem.endswith("-zh"):
            continue
        target = folder / f"{figure.stem}.png"
        target.write_bytes(vl_convert.svg_to_png(figure.read_text(encoding="utf-8"), scale=SCALE))
        written.append(target)
    return written


if __name__ == "__main__":
    print(f"figures: {len(write_pngs(Path(sys.argv[1]), Path(sys.argv[2])))} as PNG")
