"""The whole story of a run, told once for every front end.

Start at :func:`medcot.pipeline.run.run`; ``train_only``, ``evaluate_only`` and ``report_only``
are its parts. ``worker``, ``collective`` and ``sharding`` are what several processes add. May
import: everything but the front ends and Kaggle.
"""
