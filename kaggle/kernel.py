"""Run on Kaggle: unpack the bundle, check it, and call the package in it.

`push.py build` copies this file and fills in the two values below. It is short and uses only the
standard library: everything that can be tested elsewhere is in the package that it carries.
"""

import base64
import bz2
import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

BUNDLE = ""  # SHA-256 over the bundle's files, which identifies the push
PAYLOAD = ""  # the packed bundle in base 85; empty if a private data set carries it

ROOT = Path(os.environ.get("KAGGLE_ROOT", "/kaggle"))


def read_payload() -> bytes:
    """Return the packed bundle from this file or from the mounted data set that carries it."""
    if PAYLOAD:
        return base64.b85decode("".join(PAYLOAD.split()))
    for path in sorted((ROOT / "input").rglob(f"medcot-{BUNDLE[:16]}.bundle")):
        return path.read_bytes()
    sys.exit(f"medcot: no data set with bundle {BUNDLE[:16]} is mounted under {ROOT / 'input'}")


def unpack(packed: bytes, folder: Path) -> None:
    """Write the bundle's files to ``folder`` after checking them against the pushed checksum."""
    index, _, contents = bz2.decompress(packed).partition(b"\n")
    files, start = {}, 0
    for name, size in json.loads(index).items():
        files[name] = contents[start : start + size]
        start += size
    listing = {name: hashlib.sha256(files[name]).hexdigest() for name in sorted(files)}
    if hashlib.sha256(json.dumps(listing).encode()).hexdigest() != BUNDLE:
        sys.exit("medcot: the bundle is damaged: its checksum is not the pushed one")
    for name, content in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def main() -> None:
    """Unpack the bundle and run the session with the package in it."""
    started = time.time()
    print(f"medcot bundle {BUNDLE}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="medcot-"))
    unpack(read_payload(), folder)
    sys.path.insert(0, str(folder / "package"))
    from medcot.kaggle.session.main import run_session

    sys.exit(run_session(folder, ROOT, bundle=BUNDLE, started=started))


if __name__ == "__main__":
    main()
