"""Loads a model, adds a LoRA adapter, and trains it in the engine's own way.

Start at :mod:`medcot.engines.loading`: ``load_base``, ``add_adapter``, ``load_adapter``. ``hf``
is transformers with peft, ``unsloth`` uses that library, ``fused`` is a training pass of our
own, and ``fsdp`` shards the frozen weights over processes. All patches of other libraries are in
``compat``. May import: planning, evaluation, data, runs and the layers below them.
"""
