"""Trains an adapter: events out, checkpoints, resuming, falling back when memory runs out.

Start at :func:`medcot.training.fit.fit`. ``trainers`` has TRL's trainer for each engine,
``recorder`` turns its steps into events, ``tracking`` sends them to Weights & Biases. May import:
engines, planning, data, runs and what lies below them.
"""
