"""Loads a model and puts a LoRA adapter on it.

Start at :mod:`medcot.engines.loading`: ``load_base``, ``add_adapter``, ``load_adapter``. ``hf`` is
plain transformers with peft, ``unsloth`` that library, ``fused`` our own training pass, ``fsdp``
weights split over processes. Changes to other libraries are in ``compat`` alone. May import:
planning, evaluation, data, runs and what lies below them.
"""
