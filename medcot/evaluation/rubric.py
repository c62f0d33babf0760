"""Checks an open answer against a rubric: key facts, each with hand-written patterns.

Only a few questions have one. An answer ``states`` or ``contradicts`` each claim, or is ``silent``
on it; it passes if it states every claim, which rules out contradicting one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from medcot.errors import RunFailed, one_line
from medcot.records import Claim

Finding = Literal["states", "contradicts", "silent"]

LIMIT_S = 1.0
"""Seconds that one pattern may take on one answer."""

# What an answer rejects is not what it claims: "rather than an increased volume".
_CONTRAST = re.compile(
    r"\b(?:rather than|as opposed to|in contrast to|unlike|instead of)\b[^.;,\n]*"
    r"(?:,\s*(?:which|where|in which)\b[^.;,\n]*)?"
    r"|(?:而不是|而非|不同于|不像)[^。；，\n]*",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class ClaimFinding:
    """What an answer says about one claim."""

    claim: str
    finding: Finding


def check_claims(answer: str, claims: Sequence[Claim]) -> list[ClaimFinding]:
    """Check ``answer`` (without its thought) against each claim. An empty answer is silent."""
    text = _CONTRAST.sub(" ", re.sub(r"[*_`]", "", answer))
    return [ClaimFinding(claim.text, _check(text, claim)) for claim in claims]


def states_all(findings: Sequence[ClaimFinding]) -> bool:
    """Tell whether every claim is stated; False without claims."""
    return bool(findings) and all(one.finding == "states" for one in findings)


def _check(text: str, claim: Claim) -> Finding:
    """Check one claim, with the time limit that Python's own expressions lack.

    Passages that state it are removed before contradictions are looked for, so that "no involuntary
    contractions" is not read as "involuntary contractions".
    """
    import regex

    rest, stated = text, 0
    try:
        for pattern in claim.states:
            rest, count = regex.subn(pattern, " ", rest, flags=regex.IGNORECASE, timeout=LIMIT_S)
            stated += count
        for pattern in claim.contradicts:
            if regex.search(pattern, rest, flags=regex.IGNORECASE, timeout=LIMIT_S):
                return "contradicts"
    except TimeoutError:
        got = f"a pattern of the claim {one_line(claim.text, 80)!r} takes over {LIMIT_S:g} s."
        raise RunFailed("claims", got, "Write it without repetition in repetition.") from None
    return "states" if stated else "silent"
