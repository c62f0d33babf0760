"""Chooses the fastest settings that fit a machine, predicts their cost, and explains the choice.

Start at :func:`medcot.planning.plan.make_plan`. ``constraints`` fixes what the config and the
machine decide, ``search`` enumerates the rest, ``memory_model`` and ``speed_model`` predict its
cost. No torch, except in the process of ``architecture`` that counts an unfamiliar model; the
network only for the ``config.json`` of a model that ``model_specs`` does not know. May import:
data, config, hardware, records, errors, paths.
"""
