"""The project as a wheel, byte for byte the same on every machine: no clock, no build tool."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import zipfile
from pathlib import Path

import medcot
from medcot.kaggle.session.requirements import requirements

PACKAGE = Path(medcot.__file__).parent
PROJECT = PACKAGE.parent
_SUFFIXES = {".py", ".json", ".jsonl", ".toml", ".txt", ".md", ".jinja", ".css", ".js"}
_EXTRA = re.compile(r"""extra == ["']([\w-]+)["']""")
_EPOCH = (1980, 1, 1, 0, 0, 0)


def wheel_name() -> str:
    return f"medcot-{medcot.__version__}-py3-none-any.whl"


def build_wheel(package: Path = PACKAGE) -> bytes:
    """The wheel of ``package``: stored, not deflated, so that the whole bundle packs tighter."""
    files = {f"medcot/{name}": content for name, content in _sources(package).items()}
    info = f"medcot-{medcot.__version__}.dist-info"
    files[f"{info}/METADATA"] = _metadata(package.parent / "pyproject.toml").encode()
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: medcot\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    files[f"{info}/entry_points.txt"] = b"[console_scripts]\nmedcot = medcot.cli.main:main\n"
    files[f"{info}/RECORD"] = _record(files, f"{info}/RECORD").encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o100644 << 16
            entry.create_system = 3
            archive.writestr(entry, content)
    return buffer.getvalue()


def _sources(package: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(package.rglob("*"), key=lambda path: path.relative_to(package).as_posix()):
        inside = path.relative_to(package)
        hidden = any(part.startswith((".", "__pycache__")) for part in inside.parts)
        if path.is_file() and path.suffix in _SUFFIXES and not hidden:
            # A checkout on Windows has other line ends; the wheel is the same.
            found[inside.as_posix()] = path.read_bytes().replace(b"\r\n", b"\n")
    return found


def _metadata(pyproject: Path) -> str:
    lines = ["Metadata-Version: 2.3", "Name: medcot", f"Version: {medcot.__version__}"]
    lines.append("Requires-Python: >=3.11")
    wanted = requirements(pyproject)
    extras = sorted({name for line in wanted for name in _EXTRA.findall(line)})
    lines += [f"Provides-Extra: {extra}" for extra in extras]
    lines += [f"Requires-Dist: {line}" for line in wanted]
    return "\n".join(lines) + "\n"


def _record(files: dict[str, bytes], own: str) -> str:
    rows = []
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        rows.append(f"{name},sha256={digest},{len(content)}")
    return "\n".join([*rows, f"{own},,"]) + "\n"
