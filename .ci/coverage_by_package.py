"""Print the share of statements that the tests ran, by package, from ``.coverage``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from coverage import Coverage
from coverage.exceptions import NoSource

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Read what `make coverage` measured; a subpackage counts for itself."""
    measured = Coverage()
    measured.load()
    statements: Counter[str] = Counter()
    missing: Counter[str] = Counter()
    for path in sorted((ROOT / "medcot").rglob("*.py")):
        try:
            _, every, _, missed, _ = measured.analysis2(str(path))
        except NoSource:
            continue
        package = path.parent.relative_to(ROOT).as_posix()
        statements[package] += len(every)
        missing[package] += len(missed)
    statements["total"], missing["total"] = statements.total(), missing.total()
    print(f"{'package':28}{'statements':>12}{'share run':>12}")
    for package, count in statements.items():
        print(f"{package:28}{count:12,}{1 - missing[package] / max(1, count):12.1%}")


if __name__ == "__main__":
    main()
