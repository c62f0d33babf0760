"""Carries out a whole run, or one of its parts, for every front end.

Start at :func:`medcot.pipeline.run.run`; ``train_only``, ``evaluate_only`` and ``report_only``
are its parts, ``prepare`` is everything before the model is loaded. ``worker``, ``collective``
and ``sharding`` divide the work among several processes. May import: everything except the front
ends and Kaggle.
"""
