"""Obtains llama.cpp's own converter: ``convert_hf_to_gguf.py`` with what it imports.

No package has it as a module. The source distribution of ``llama-cpp-python`` carries the whole of
llama.cpp, of which three folders of Python are taken, unchanged; nothing is compiled. pip fetches
it, so that the mirrors and proxies that it is set to are used, and its SHA-256 is checked.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

from medcot.catalog import Message
from medcot.errors import InputError, RunFailed, one_line
from medcot.network import require_network
from medcot.paths import cache_folder

PROJECT, VERSION = "llama-cpp-python", "0.3.36"
ARCHIVE = f"llama_cpp_python-{VERSION}.tar.gz"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
SCRIPT = "convert_hf_to_gguf.py"

TAKEN = (SCRIPT, "LICENSE", "conversion", "gguf-py/gguf", "gguf-py/LICENSE")
"""Files and folders of llama.cpp that the converter consists of."""

VARIABLE = "MEDCOT_LLAMA_CPP"
"""Environment variable with the folder of another llama.cpp, whose converter is then used."""

LONGEST_S = 6 * 3600


def find_converter() -> Path:
    """Return the converter's script: that of ``MEDCOT_LLAMA_CPP``, the cached one, or a new one.

    Raises:
        InputError: ``MEDCOT_LLAMA_CPP`` is no llama.cpp, or the archive is not the expected one.
        RunFailed: It is not cached, and cannot be fetched.
    """
    if chosen := os.environ.get(VARIABLE):
        script = Path(chosen) / SCRIPT
        if not script.is_file():
            raise InputError(VARIABLE, f"no {SCRIPT} in {chosen}", "name a folder of llama.cpp")
        return script
    folder = cache_folder() / f"llama.cpp-of-{PROJECT}-{VERSION}"
    if not (folder / SCRIPT).is_file():
        _install(folder)
    return folder / SCRIPT


def _install(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".converter-") as temporary:
        kept = cache_folder() / ARCHIVE
        archive = kept if kept.is_file() else _download(Path(temporary))
        _check(archive)
        made = Path(temporary) / "made"
        _unpack(archive, made)
        if not (folder / SCRIPT).is_file():
            shutil.rmtree(folder, ignore_errors=True)
            made.replace(folder)


def _download(folder: Path) -> Path:
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{PROJECT}=={VERSION} --hash=sha256:{SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    command += ["--no-binary", PROJECT, "--dest", str(folder), "--requirement", str(wanted)]
    try:
        require_network(PROJECT, "https://pypi.org")
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LONGEST_S, check=False
        )
        why = done.stderr.strip().splitlines()[-1:] or [""]
    except (OSError, subprocess.TimeoutExpired, InputError) as error:
        why = [str(error)]
    archive = folder / ARCHIVE
    if not archive.is_file():
        raise RunFailed(
            "export",
            Message("export_no_converter", {"why": one_line(why[0], 120)}),
            Message(
                "needs_converter",
                {"archive": ARCHIVE, "folder": str(cache_folder()), "variable": VARIABLE},
            ),
        )
    return archive


def _check(archive: Path) -> None:
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise InputError(str(archive), f"its SHA-256 is {found[:16]}…", f"expected {SHA256[:16]}…")


def _unpack(archive: Path, target: Path) -> None:
    """Unpack the files of :data:`TAKEN`; links and anything else in the archive are left out."""
    inside = PurePosixPath(f"llama_cpp_python-{VERSION}/vendor/llama.cpp")
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if not member.isfile() or not path.is_relative_to(inside) or ".." in path.parts:
                continue
            name = path.relative_to(inside)
            if not any(name.is_relative_to(one) for one in TAKEN):
                continue
            place = target / name
            place.parent.mkdir(parents=True, exist_ok=True)
            content = tar.extractfile(member)
            if content is not None:
                place.write_bytes(content.read())


if __name__ == "__main__":
    print(find_converter())  # The tests' environment fetches it before they run without a network.
