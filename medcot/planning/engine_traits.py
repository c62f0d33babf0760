"""Lists what distinguishes the engines: the planner and an engine's callers ask for traits.

The planner may not import the engines, so the traits are data here, and each engine's class refers
to its own entry. A new engine needs a name in the config's schema, an entry here, coefficients in
the memory and throughput models, and a class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from medcot.config.schema import EngineName


@dataclass(frozen=True, slots=True)
class Traits:
    """What an engine does differently from plain transformers.

    Attributes:
        packs: Trains through a pass of its own, on rows packed by medcot. That pass also chooses
            its dtypes, recomputes layers one by one, computes a prefix that rows share once, and
            logs its steps late.
        splits: Each process holds a part of the weights, so all processes must use the model
            alike, and inference must not leave tensors behind that autograd refuses.
        replaceable_attention: Generation may exchange the attention function, which continuous
            batching does.
        extends_cache: A forward pass may read several tokens after a KV cache.
        brings_attention: Trains with an attention of its own, which keeps packed rows apart on
            CUDA, in place of transformers' ``attn_implementation``.
        multiplies_fp8: Can multiply frozen weights in 8-bit floats.
        offloads_inputs: Moves the inputs of recomputed layers to host memory.
        splittable: Has a counterpart whose processes each hold a part of the weights.
        needs_cuda: Runs on CUDA only.
        package: The optional package that it needs; "" if none.
        import_s: Seconds that importing its libraries takes.
        tie_ratio: Predicted step times within this ratio count as equal: the error of its
            throughput model.
    """

    packs: bool = False
    splits: bool = False
    replaceable_attention: bool = True
    extends_cache: bool = True
    brings_attention: bool = False
    multiplies_fp8: bool = False
    offloads_inputs: bool = False
    splittable: bool = False
    needs_cuda: bool = False
    package: str = ""
    import_s: float = 12.0
    tie_ratio: float = 1.1


PLAIN_ENGINE: EngineName = "transformers"
"""The engine that runs on any device with no optional package."""

TRAITS: Mapping[EngineName, Traits] = {
    "fused": Traits(packs=True, brings_attention=True, multiplies_fp8=True, tie_ratio=1.03),
    # Its attention is compiled into the model, and takes one token at a time after a cache.
    "unsloth": Traits(
        replaceable_attention=False,
        extends_cache=False,
        brings_attention=True,
        offloads_inputs=True,
        needs_cuda=True,
        package="unsloth",
        import_s=40.0,
    ),
    "transformers": Traits(splittable=True),
}

SPLIT_TRAITS = Traits(splits=True, replaceable_attention=False)
"""The plain engine with its weights split over processes (FSDP).

A recorded or resized attention would have to gather weights, too.
"""
