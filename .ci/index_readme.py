"""Make the page that the package index shows from README.md, whose links lead to files beside it.

hatchling calls this when it builds. The index has no such files: with an address in
``[project.urls]`` the links lead there, to the tag of this version; until there is one they are
plain text, and pictures are left out.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^\[\]]*)\]\((?P<target>[^()\s]+)\)")


class IndexReadme(MetadataHookInterface):
    """hatchling's hook for a field that is not written in pyproject.toml."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Put the page into ``metadata``."""
        root = Path(self.root)
        text = (root / "README.md").read_text(encoding="utf-8")
        version = re.findall(r'__version__ = "(.+)"', (root / "medcot/__init__.py").read_text())[0]
        page = place_links(text, metadata.get("urls", {}).get("Source"), f"v{version}")
        metadata["readme"] = {"content-type": "text/markdown", "text": page}


def place_links(text: str, address: str | None, tag: str) -> str:
    """Return ``text`` without links to files beside it."""

    def place(found: re.Match[str]) -> str:
        picture, words, target = found["picture"], found["text"], found["target"]
        if re.match(r"#|\w+:", target):
            return found[0]
        if address is None:
            return "" if picture else words
        kind = "raw" if picture else "blob"
        return f"{picture}[{words}]({address}/{kind}/{tag}/{target})"

    return LINK.sub(place, text)
