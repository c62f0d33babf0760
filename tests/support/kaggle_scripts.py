"""Scripted sessions for the stand-in of Kaggle, where nothing needs to be trained."""

from __future__ import annotations

import hashlib
import json
import re

from medcot.config.presets import make_config
from medcot.config.schema import RunConfig
from tests.support.kaggle_session import Session

CONFIG = make_config("demo", {"steps": 2})


class Lines(list[str]):
    """Lines that were said: ``lines(line)`` adds one."""

    def __call__(self, line: str) -> None:
        self.append(line)

    @property
    def text(self) -> str:
        return "\n".join(self)


def quick_session(session: Session) -> None:
    """Ends at once, with the output of a tiny run."""
    end_session(session, {"run/report.json": b'{"verdict": {}}\n', "run/report.md": b"# ok\n"})


def idle_session(session: Session) -> None:
    """Runs until a test ends it."""
    session.status = "RUNNING"


def end_session(
    session: Session,
    files: dict[str, bytes],
    *,
    outcome: str = "done",
    code: int = 0,
    status: str = "COMPLETE",
    manifest: bool = True,
) -> None:
    """Leave ``files`` as the output of ``session``, with the manifest that a kernel writes."""
    session.extra.update(files)
    session.say(f"medcot bundle {checksum_of(session)}\n")
    session.say("step 1 of 2\n")
    if manifest:
        listed = {
            name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in files.items()
        }
        values = {
            "bundle": checksum_of(session),
            "run": "key",
            "session": session.number,
            "outcome": outcome,
            "exit_code": code,
            "seconds": 1.0,
            "notes": ["HUGGINGFACE_TOKEN: not attached"],
            "files": listed,
        }
        session.extra["manifest.json"] = json.dumps(values).encode()
    session.end(status)


def checksum_of(session: Session) -> str:
    found = re.search(r'BUNDLE = \\?"(\w+)', session.body["text"])
    assert found
    return found[1]


def config_with(**changes: object) -> RunConfig:
    return make_config("demo", {"steps": 2, **changes})
