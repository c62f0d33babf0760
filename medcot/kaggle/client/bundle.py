"""The bundle: sources, notebook, config and data, packed to the same bytes every time."""

from __future__ import annotations

import ast
import bz2
import contextlib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any

from medcot.config.schema import BETWEEN_DATA_SETS, RunConfig
from medcot.credentials import Secret
from medcot.data.readers import READERS
from medcot.data.snapshots import find_snapshot
from medcot.data.sources import is_data_file, list_files, split_names
from medcot.data.streams import COMPRESSED, format_of
from medcot.errors import InputError, RunFailed
from medcot.kaggle.client.metadata import CODE_FILES
from medcot.kaggle.client.sources import PACKAGE_FOLDER, collect_package, read_with_unix_line_ends
from medcot.kaggle.session.job import CONFIG_FILE, JOB_FILE, JobSpec
from medcot.kaggle.session.secret_scan import SecretMatch, find_secrets
from medcot.paths import PROJECT, is_folder

MARKER = "medcot bundle "
"""Begins the first line of a kernel's log, and tells our kernels from others."""
_LINE = 4000
"""Characters of the packed bundle per line: with 120, line ends alone are almost 1 %."""

_DIGITS = [chr(code) for code in range(33, 127) if chr(code) not in "\"'\\"]
"""The 91 digits of the packed bundle; ``kaggle/kernel.py`` has the same."""

_LARGEST_SCANNED = 1 << 28
"""Bytes of a compressed file's content that are searched for secrets."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """Named contents. ``checksum`` (SHA-256) is over all of them and identifies a push."""

    files: Mapping[str, bytes]
    checksum: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "checksum", _checksum(self.files))

    @property
    def code(self) -> dict[str, bytes]:
        """The files that are packed: all but the options and the job, which a script shows."""
        return {
            name: self.files[name] for name in self.files if name not in (CONFIG_FILE, JOB_FILE)
        }

    @property
    def code_checksum(self) -> str:
        """The SHA-256 over the packed files."""
        return _checksum(self.code)

    @property
    def file_name(self) -> str:
        """The name in a data set, without an archive's suffix: Kaggle would unpack it."""
        return f"medcot-{self.code_checksum[:16]}.bundle"


def _checksum(files: Mapping[str, bytes]) -> str:
    listing = {name: hashlib.sha256(files[name]).hexdigest() for name in sorted(files)}
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def run_key(config: RunConfig) -> str:
    """Return the key that sessions of one run share. It depends on the config alone."""
    return hashlib.sha256(_json(config.model_dump(mode="json"))).hexdigest()[:16]


def collect(config: RunConfig, job: JobSpec, project: Path = PROJECT) -> Bundle:
    """Collect everything that the kernel needs for a run.

    Raises:
        InputError: the config names a model folder, or a data file that does not exist.
    """
    sent, data = carry_data(config)
    # The notebook compares a run with the finished one in its own language.
    unused = (
        f"{PACKAGE_FOLDER}/medcot/runs/finished/demo-{'zh' if config.language == 'en' else 'en'}/"
    )
    package = collect_package(project)
    files = {
        **{name: package[name] for name in package if not name.startswith(unused)},
        CONFIG_FILE: _json(sent.model_dump(mode="json")),
        JOB_FILE: _json(replace(job, run=run_key(config)).to_json()),
        **data,
    }
    apps = (path for path in (project / "apps").glob("*") if path.name != "minimal.py")
    carried = [project / "kaggle" / "constraints.txt", *sorted(apps)]
    for path in carried:
        if path.is_file() and path.suffix in (".py", ".css", ".html", ".md", ".toml", ".txt"):
            name = path.relative_to(project).as_posix()
            files[name] = read_with_unix_line_ends(path)
    return Bundle(files)


def pack(bundle: Bundle) -> bytes:
    """Pack the bundle's code: a JSON line that maps names to sizes, then the contents, compressed.

    A tar archive is 2 % larger, as its header for each file hardly compresses; LZMA is 3 % larger
    than bzip2 on these sources. Python comes first, short files before long ones, because like
    compresses best beside like.
    """
    files = bundle.code
    names = sorted(files, key=lambda name: (not name.endswith(".py"), len(files[name]), name))
    index = json.dumps({name: len(files[name]) for name in names})
    contents = b"".join(files[name] for name in names)
    return bz2.compress(f"{index}\n".encode() + contents)


def write_script(bundle: Bundle, packed: bytes | None, template: Path) -> str:
    """Return the kernel's source: ``template`` with options, checksums, and the packed code if any.

    Raises:
        RunFailed: the template is missing, as it is outside a checkout of the project.
    """
    if not template.is_file():
        raise RunFailed(
            "build", f"{template} does not exist.", "Run this in a checkout of the project."
        )
    text = template.read_text(encoding="utf-8")
    values = {
        "OPTIONS = {}": _write_options(json.loads(bundle.files[CONFIG_FILE])),
        "SESSION = {}": _write_session(json.loads(bundle.files[JOB_FILE])),
        'BUNDLE = ""': f'BUNDLE = "{bundle.checksum}"',
        'CODE = ""': f'CODE = "{bundle.code_checksum}"',
        'PACKED = ""': f'PACKED = """\n{_as_text(packed)}\n"""' if packed else 'PACKED = ""',
    }
    for name, value in values.items():
        before, found, after = text.partition(f"\n{name}\n")
        assert found, f"{template} has no line {name!r}"
        text = f"{before}\n{value}\n{after}"
    return text


_LITERAL_WIDTH = 96
"""Columns of a line of several options."""


def _write_options(config: Mapping[str, Any]) -> str:
    """Write the options that ``--help`` lists with what they mean, then the others."""
    fields = RunConfig.model_fields
    shown = {name for name in config if name in fields and _is_shown(fields[name])}
    lines: list[str] = []
    for name in (name for name in fields if name in shown):
        value, comment = f'    "{name}": {_literal(config[name])},', fields[name].description
        one = f"{value}  # {comment}"
        lines += [one] if len(one) <= _LITERAL_WIDTH else [f"    # {comment}", value]
    rest = {name: config[name] for name in fields if name in config and name not in shown}
    return "\n".join(["OPTIONS = {", *lines, *_fill(rest), "}"])


def _literal(value: Any) -> str:
    """Write a value as the project's formatter does, with double quotes."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return f"[{', '.join(map(_literal, value))}]" if isinstance(value, list) else repr(value)


def _is_shown(info: Any) -> bool:
    extra = info.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("shown"))


def _write_session(job: Mapping[str, Any]) -> str:
    names = [each.name for each in fields_of(JobSpec) if each.name in job]
    return "\n".join(["SESSION = {", *_fill({name: job[name] for name in names}), "}"])


def _fill(values: Mapping[str, Any]) -> list[str]:
    """Write several values on each line."""
    lines: list[str] = []
    for name, value in values.items():
        one = f'"{name}": {_literal(value)},'
        if lines and len(lines[-1]) + len(one) < _LITERAL_WIDTH:
            lines[-1] += f" {one}"
        else:
            lines.append(f"    {one}")
    return lines


def read_script(text: str) -> dict[str, bytes]:
    """Return the files in a kernel's source; only options and job if a data set carries the rest.

    Raises:
        InputError: the source was changed, or medcot did not make it.
    """
    values = _read_values(text)
    try:
        files = unpack(_from_text(values["PACKED"])) if values["PACKED"] else {}
        whole = files | {
            name: _json(values[variable])
            for name, variable in ((CONFIG_FILE, "OPTIONS"), (JOB_FILE, "SESSION"))
        }
        intact = not files or _checksum(whole) == values["BUNDLE"]
    except (KeyError, TypeError, AttributeError, ValueError, OSError):
        intact, whole = False, {}
    if not intact or len(str(values.get("BUNDLE", ""))) != _HEX:
        raise InputError("the kernel's source", "it was changed", "build it again")
    return whole


_HEX = 64


def checksum_of(text: str) -> str:
    """Return the checksum that a kernel's source names, or an empty string."""
    return str(_read_values(text).get("BUNDLE", ""))


def _read_values(text: str) -> dict[str, Any]:
    """Return the constants that a script, or the code cells of a notebook, defines."""
    try:
        if text.lstrip().startswith("{"):
            cells = json.loads(text)["cells"]
            code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
            text = "\n".join(code)
        body = ast.parse(text).body
    except (SyntaxError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    found: dict[str, Any] = {}
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            with contextlib.suppress(ValueError):
                found[node.targets[0].id] = ast.literal_eval(node.value)
    return found


def _as_text(packed: bytes) -> str:
    """Encode in base 91, which needs no escapes in a Python string and 2 % less than base 85.

    Two characters hold 13 bits; zeros fill the last ones.
    """
    bits = "".join(f"{byte:08b}" for byte in packed)
    bits += "0" * (-len(bits) % 13)
    numbers = (int(bits[at : at + 13], 2) for at in range(0, len(bits), 13))
    text = "".join(_DIGITS[one // 91] + _DIGITS[one % 91] for one in numbers)
    return "\n".join(text[start : start + _LINE] for start in range(0, len(text), _LINE))


def _from_text(text: str) -> bytes:
    """Decode what :func:`_as_text` wrote; a byte of zeros may follow."""
    values, text = {one: at for at, one in enumerate(_DIGITS)}, "".join(text.split())
    pairs = zip(text[::2], text[1::2], strict=True)
    bits = "".join(f"{values[one] * 91 + values[other]:013b}" for one, other in pairs)
    return int(f"0{bits[: len(bits) // 8 * 8]}", 2).to_bytes(len(bits) // 8, "big")


def unpack(packed: bytes) -> dict[str, bytes]:
    """Return the files that :func:`pack` packed."""
    index, _, contents = bz2.BZ2Decompressor().decompress(packed).partition(b"\n")
    files, start = {}, 0
    for name, size in json.loads(index).items():
        files[name] = contents[start : start + size]
        start += size
    return files


_PACKED = re.compile(rb"[^\s\"']{1000,}")
"""A line of the packed bundle."""


def scan_files(files: Mapping[str, bytes], secrets: Sequence[Secret]) -> list[SecretMatch]:
    """Find every secret in what is about to be sent."""
    return [
        match
        for name in sorted(files)
        for match in find_secrets(name, _readable(name, files[name]), secrets)
    ]


def _readable(name: str, content: bytes) -> bytes | str:
    """Return the text of a file: the columns of a Parquet file are compressed.

    Raises:
        InputError: a Parquet file that cannot be read and therefore not searched.
    """
    if name in CODE_FILES.values():
        # Packed data looks like a token by chance; what it holds is searched unpacked.
        return _PACKED.sub(b"", content)
    if not name.startswith("data/"):
        return content
    kind, packed = format_of(name), COMPRESSED.get(Path(name).suffix.lower())
    try:
        if packed:
            content = _unpacked(content, packed)
        if kind in (".csv", ".tsv") and content[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return content.decode("utf-16", "replace")
        rows = _rows_of(content, kind)
    except (OSError, ValueError) as error:
        what = {".parquet": "Parquet", ".arrow": "Arrow"}.get(kind, f"{packed}-compressed")
        raise InputError(name, f"not a {what} file ({error})", "expected a readable one") from None
    if rows is None:
        return content
    return "\n".join(json.dumps(row, ensure_ascii=False, default=str) for row in rows)


def _unpacked(content: bytes, kind: str) -> bytes:
    from pyarrow import BufferReader, CompressedInputStream

    found = CompressedInputStream(BufferReader(content), kind).read(_LARGEST_SCANNED + 1)
    if len(found) > _LARGEST_SCANNED:
        raise ValueError(f"it unpacks to over {_LARGEST_SCANNED:,} bytes")
    return found


def _rows_of(content: bytes, kind: str) -> list[Any] | None:
    """Return the rows of a Parquet or Arrow file, None for a file of text."""
    from pyarrow import BufferReader, ipc
    from pyarrow.parquet import read_table

    if kind == ".parquet":
        return read_table(BufferReader(content)).to_pylist()
    if kind == ".arrow":
        return ipc.open_stream(BufferReader(content)).read_all().to_pylist()
    return None


def refuse_secrets(matches: Sequence[SecretMatch]) -> None:
    """Refuse to send anything if there are ``matches``.

    Raises:
        InputError: names the place of the first and the number of the others, never a value.
    """
    if matches:
        more = f" (and {len(matches) - 1} more)" if len(matches) > 1 else ""
        where, what = matches[0].where, matches[0].what
        raise InputError(
            f"bundle, {where}", f"found {what}{more}", "keep secrets in Kaggle's Secrets"
        )


def carry_data(config: RunConfig) -> tuple[RunConfig, dict[str, bytes]]:
    """Return the config for the kernel, and its local files for ``data/``, where the run starts."""
    if is_folder(config.model):
        raise InputError(
            f"--model {config.model}",
            "a folder on this machine cannot be sent",
            "use a hub name or smollm2-135m",
        )
    if config.judge_criteria:
        raise InputError(
            f"--judge-criteria {config.judge_criteria}",
            "a kernel does not grade by criteria",
            "leave it out on Kaggle",
        )
    files: dict[str, bytes] = {}

    def add(wanted: str, contents: Mapping[str, bytes]) -> str:
        """Add a file or folder, under another name if other data has that one."""
        name, number = wanted, 0
        while _is_taken(files, f"data/{name}", contents):
            number += 1
            name = f"{number}-{wanted}"
        files.update((f"data/{name}{inside}", content) for inside, content in contents.items())
        return name

    def carry(option: str, source: str) -> str:
        if snapshot := find_snapshot(source):
            raise InputError(
                f"{option} {source}",
                "a folder of the hub's cache cannot be sent",
                f"use {snapshot.repository}, with --dataset-revision {snapshot.commit[:12]}",
            )
        if is_folder(source):
            path = Path(source).resolve()
            list_files(path)  # a folder without a set is refused here, not in the kernel
            return add(path.name, {f"/{n}": c for n, c in _files_below(path).items()})
        if not is_data_file(source):
            return source
        path = Path(source)
        if not path.is_file():
            raise InputError(
                f"{option} {source}", "no such file", "expected an existing file or a hub name"
            )
        return add(path.name, {"": path.read_bytes()})

    names = (carry("--dataset", source) for source in split_names(config.dataset))
    changes: dict[str, Any] = {"dataset": BETWEEN_DATA_SETS.join(names)}
    changes["mcq"] = tuple(carry("--mcq", source) for source in config.mcq)
    return config.model_copy(update=changes), files


def _is_taken(files: Mapping[str, bytes], place: str, contents: Mapping[str, bytes]) -> bool:
    """Return whether there is something else at ``place``, or something more."""
    there = {
        name.removeprefix(place): content
        for name, content in files.items()
        if name == place or name.startswith(f"{place}/")
    }
    return bool(there) and there != contents


def _files_below(folder: Path) -> dict[str, bytes]:
    """Read a data set's folder, and the splits that ``datasets`` saved in it; names lie within."""
    kept = (".json", *READERS)
    found = sorted(folder.glob("*")) + sorted(folder.glob("*/*"))
    return {
        one.relative_to(folder).as_posix(): one.read_bytes() for one in found
        if one.is_file() and not one.name.startswith(".") and format_of(one) in kept
    }  # fmt: skip


def _json(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True) + "\n").encode()
