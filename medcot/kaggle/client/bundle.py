"""What travels: sources, notebook, config and data, packed the same way every time."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import lzma
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medcot.config.schema import RunConfig
from medcot.errors import InputError, RunFailed
from medcot.kaggle.client.sources import PROJECT, collect_package, read_with_unix_line_ends
from medcot.kaggle.session.secret_scan import Leak, Secret, find_leaks
from medcot.kaggle.session.user_secrets import HUB_LABELS, WANDB_LABELS

MARKER = "medcot bundle "
_DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


@dataclass(frozen=True, slots=True)
class Orders:
    """What the session is to do with the config, beside the config itself.

    ``limit_s`` is the session's length, ``margin_s`` what is kept of it for saving. ``session``
    counts from 1; later ones continue from the output of ``previous``, the kernel's own name.
    """

    task: str = "run"
    gpu: bool = False
    limit_s: int = 12 * 3600
    margin_s: int = 900
    session: int = 1
    previous: str = ""
    hub_labels: tuple[str, ...] = HUB_LABELS
    wandb_labels: tuple[str, ...] = WANDB_LABELS
    secrets_dataset: str = ""
    hub_repository: str = ""


@dataclass(frozen=True, slots=True)
class Bundle:
    """Named contents, and the checksum over all of them that names a push."""

    files: Mapping[str, bytes]
    checksum: str = field(init=False)

    def __post_init__(self) -> None:
        listing = {n: hashlib.sha256(self.files[n]).hexdigest() for n in sorted(self.files)}
        digest = hashlib.sha256(json.dumps(listing).encode()).hexdigest()
        object.__setattr__(self, "checksum", digest)

    @property
    def file_name(self) -> str:
        """Its name in a data set. No archive's suffix: Kaggle would unpack it."""
        return f"medcot-{self.checksum[:16]}.bundle"


def run_key(config: RunConfig) -> str:
    """What makes two sessions parts of one run: the config alone, not the code or the folder."""
    return hashlib.sha256(_json(config.model_dump(mode="json"))).hexdigest()[:16]


def collect(config: RunConfig, orders: Orders, project: Path = PROJECT) -> Bundle:
    """The files of a run.

    Raises:
        InputError: the config names a model folder or a data file that cannot travel.
    """
    sent, data = _carry_data(config)
    files = {
        **collect_package(project),
        "config.json": _json(sent.model_dump(mode="json")),
        "orders.json": _json(asdict(orders) | {"run": run_key(config)}),
        **data,
    }
    carried = [project / "kaggle" / "constraints.txt", *sorted((project / "apps").glob("*"))]
    for path in carried:
        if path.is_file() and path.suffix in (".py", ".css", ".md", ".toml", ".txt"):
            name = path.relative_to(project).as_posix()
            files[name] = read_with_unix_line_ends(path)
    return Bundle(files)


def pack(bundle: Bundle) -> bytes:
    """The bundle as one compressed archive without a date, an owner or an order of its own."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(bundle.files):
            entry = tarfile.TarInfo(name)
            entry.size = len(bundle.files[name])
            archive.addfile(entry, io.BytesIO(bundle.files[name]))
    return lzma.compress(buffer.getvalue(), preset=6)


def write_script(checksum: str, packed: bytes | None, template: Path) -> str:
    """The kernel's source: ``template`` with the checksum and, unless None, the packed bundle.

    Raises:
        RunFailed: the template is not where a checkout of the project has it.
    """
    if not template.is_file():
        raise RunFailed(
            "build", f"{template} does not exist.", "Run this in a checkout of the project."
        )
    text = template.read_text(encoding="utf-8")
    payload = f'"""\n{_as_text(packed)}\n"""' if packed else '""'
    for name, value in (("BUNDLE", f'"{checksum}"'), ("PAYLOAD", payload)):
        before, found, after = text.partition(f'\n{name} = ""')
        assert found, f"{template} has no line {name!r}"
        text = f"{before}\n{name} = {value}{after}"
    return text


def read_script(text: str) -> dict[str, bytes]:
    """The files that a script made by :func:`write_script` carries; none where a data set does.

    Raises:
        InputError: the script is not one of ours, or was changed.
    """
    found = re.search(r'\nBUNDLE = "(\w{64})"', text)
    payload = re.search(r'\nPAYLOAD = """([^"]*)"""', text)
    if found and not payload:
        return {}
    files = unpack(_from_text(payload[1])) if payload else {}
    if not found or Bundle(files).checksum != found[1]:
        raise InputError("kernel.py", "the script was changed", "build it again")
    return files


def _as_text(packed: bytes) -> str:
    """In base 85, whose letters need no escape in a Python string: 6 % less than in base 64."""
    text = base64.b85encode(packed).decode()
    return "\n".join(text[start : start + 120] for start in range(0, len(text), 120))


def _from_text(text: str) -> bytes:
    return base64.b85decode("".join(text.split()))


def unpack(packed: bytes) -> dict[str, bytes]:
    """The files that :func:`pack` packed."""
    with tarfile.open(fileobj=io.BytesIO(lzma.decompress(packed))) as archive:
        opened = {entry.name: archive.extractfile(entry) for entry in archive.getmembers()}
        return {name: file.read() for name, file in opened.items() if file is not None}


def scan(files: Mapping[str, bytes], secrets: Sequence[Secret]) -> list[Leak]:
    """Find every secret in what is about to leave, by file."""
    return [
        leak
        for name in sorted(files)
        for leak in find_leaks(name, _readable(name, files[name]), secrets)
    ]


def _readable(name: str, content: bytes) -> bytes | str:
    """What a reader of the file ``name`` would see: the columns of a parquet file are compressed.

    Raises:
        InputError: a parquet file that cannot be read, and so not searched.
    """
    if not name.endswith(".parquet"):
        return content
    from pyarrow import ArrowInvalid, BufferReader
    from pyarrow.parquet import read_table

    try:
        rows = read_table(BufferReader(content)).to_pylist()
    except (ArrowInvalid, OSError) as error:
        raise InputError(name, f"not a Parquet file ({error})", "expected a readable one") from None
    return "\n".join(json.dumps(row, ensure_ascii=False, default=str) for row in rows)


def refuse_leaks(leaks: Sequence[Leak]) -> None:
    """Raises:
    InputError: one line for all of ``leaks``, with their places and never a value.
    """
    if leaks:
        more = f" (and {len(leaks) - 1} more)" if len(leaks) > 1 else ""
        where, what = leaks[0].where, leaks[0].what
        raise InputError(
            f"bundle, {where}", f"found {what}{more}", "keep secrets in Kaggle's Secrets"
        )


def _carry_data(config: RunConfig) -> tuple[RunConfig, dict[str, bytes]]:
    """The config as the kernel gets it: local files travel in ``data/``, the folder it runs in."""
    if Path(config.model).expanduser().is_dir():
        raise InputError(
            f"--model {config.model}",
            "a folder on this machine cannot be sent",
            "use a hub name or smollm2-135m",
        )
    files: dict[str, bytes] = {}

    def carry(option: str, source: str) -> str:
        if not source.endswith(_DATA_SUFFIXES):
            return source
        path = Path(source).expanduser()
        if not path.is_file():
            raise InputError(
                f"{option} {source}", "no such file", "expected an existing file or a hub name"
            )
        content, name = path.read_bytes(), path.name
        while files.get(f"data/{name}", content) != content:
            name = f"{len(files)}-{path.name}"
        files[f"data/{name}"] = content
        return name

    changes: dict[str, Any] = {"dataset": carry("--dataset", config.dataset)}
    changes["mcq"] = tuple(carry("--mcq", source) for source in config.mcq)
    return config.model_copy(update=changes), files


def _json(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True) + "\n").encode()
