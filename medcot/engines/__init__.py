"""Loads a model, puts a LoRA adapter on it and runs its training pass.

Start at :class:`medcot.engines.base.Engine`, the protocol, and
:func:`medcot.engines.loading.engine_for`, which returns the engine of a plan. ``hf`` is plain
transformers with peft, ``unsloth`` that library, ``fused`` medcot's own training pass and ``fsdp``
weights sharded over processes. Patches of other libraries are in ``compat`` alone; ``fallbacks``
records what had to be done the slower way. May import: planning, evaluation, data, runs and what
lies below them.
"""
