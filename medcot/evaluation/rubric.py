"""Does an open answer state what it must? Patterns for each claim, and nothing beyond them.

The check is for the few questions whose claims were written by hand. It says ``states``,
``contradicts`` or ``silent``; an answer passes when it states every claim and contradicts none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from medcot.records import Claim

Finding = Literal["states", "contradicts", "silent"]

# What an answer sets itself apart from is not what it claims: "rather than an increased volume".
_CONTRAST = re.compile(
    r"\b(?:rather than|as opposed to|in contrast to|unlike|instead of)\b[^.;,\n]*"
    r"(?:,\s*(?:which|where|in which)\b[^.;,\n]*)?"
    r"|(?:而不是|而非|不同于|不像)[^。；，\n]*",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class ClaimFinding:
    """What an answer says of one claim."""

    claim: str
    finding: Finding


def check_claims(answer: str, claims: Sequence[Claim]) -> list[ClaimFinding]:
    """What ``answer`` (without its thought) says of each claim. An empty answer is silent."""
    text = _CONTRAST.sub(" ", re.sub(r"[*_`]", "", answer))
    return [ClaimFinding(claim.text, _check(text, claim)) for claim in claims]


def passes(findings: Sequence[ClaimFinding]) -> bool:
    """Whether every claim is stated."""
    return bool(findings) and all(one.finding == "states" for one in findings)


def _check(text: str, claim: Claim) -> Finding:
    """A passage that states the claim is taken out before contradictions are looked for, so that
    "no involuntary contractions" is not read as "involuntary contractions"."""
    rest, stated = text, 0
    for pattern in claim.states:
        rest, count = re.subn(pattern, " ", rest, flags=re.IGNORECASE)
        stated += count
    if any(re.search(pattern, rest, flags=re.IGNORECASE) for pattern in claim.contradicts):
        return "contradicts"
    return "states" if stated else "silent"
