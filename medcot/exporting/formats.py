"""The export formats, and by how much each may change the loss before something is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

from medcot.errors import InputError, nearest

Format = Literal["adapter", "merged", "gguf", "ollama", "hub"]
FORMATS: tuple[Format, ...] = get_args(Format)

Quantization = Literal["F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M"]
QUANTIZATIONS: tuple[Quantization, ...] = get_args(Quantization)
DEFAULT_QUANTIZATIONS: tuple[Quantization, ...] = ("F16", "Q8_0", "Q4_K_M")

FILE_TYPES: dict[Quantization, int] = {"F16": 1, "Q8_0": 7, "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18}
"""``llama_ftype`` of llama.cpp's ``llama.h``."""

BITS: dict[Quantization, float] = {
    "F16": 16, "Q8_0": 8.5, "Q6_K": 6.6, "Q5_K_M": 5.7, "Q4_K_M": 4.9,
}  # fmt: skip
"""Bits per weight, as llama.cpp's ``llama-quantize`` states them."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What a format's precision explains, in nats per completion token.

    A change of the mean loss up to ``same`` is rounding. Up to ``limit`` it is the cost of the
    format. Beyond that, something other than the precision has changed.
    """

    same: float
    limit: float


ROUNDING = Tolerance(same=0.005, limit=0.03)
"""16 bits against the precision of the run."""

TOLERANCES: dict[Quantization, Tolerance] = {
    "F16": ROUNDING,
    "Q8_0": Tolerance(same=0.005, limit=0.05),
    "Q6_K": Tolerance(same=0.005, limit=0.15),
    "Q5_K_M": Tolerance(same=0.005, limit=0.3),
    "Q4_K_M": Tolerance(same=0.005, limit=0.5),
}
"""Set by hand, several times what ``docs/exports.md`` measured with a model of 135M parameters;
larger models lose less to quantisation."""


def parse_formats(names: Sequence[str]) -> tuple[Format, ...]:
    """Return the named formats, each once, in the order in which they build on one another.

    Raises:
        InputError: None is named, or one is not known.
    """
    listed = ", ".join(FORMATS)
    if not names:
        raise InputError("--to", "no format given", f"expected one or more of {listed}")
    for name in names:
        if name not in FORMATS:
            raise InputError(
                "--to", f"found {name!r}{nearest(name, list(FORMATS))}", f"expected one of {listed}"
            )
    return tuple(one for one in FORMATS if one in names)


def parse_quantizations(names: Sequence[str]) -> tuple[Quantization, ...]:
    """Return the named quantisations, each once, the most precise first.

    Raises:
        InputError: One is not known.
    """
    known = {one.lower(): one for one in QUANTIZATIONS}
    for name in names:
        if name.lower() not in known:
            listed = ", ".join(QUANTIZATIONS)
            close = nearest(name, list(QUANTIZATIONS))
            raise InputError("--quantize", f"found {name!r}{close}", f"expected one of {listed}")
    chosen = {known[name.lower()] for name in names} or set(DEFAULT_QUANTIZATIONS)
    return tuple(cast("Quantization", one) for one in QUANTIZATIONS if one in chosen)
