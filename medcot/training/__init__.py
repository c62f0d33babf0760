"""Trains an adapter: emits events, saves checkpoints, resumes, recovers when memory runs out.

Start at :func:`medcot.training.fit.fit`. ``trainers`` has TRL's trainer for each engine,
``recorder`` turns its steps into events, ``tracking`` sends them to W&B, TensorBoard
or trackio. May import: engines, planning, evaluation, data, runs and the layers below them.
"""
