"""On your machine: build a kernel, push it, wait for it, fetch what it made.

Start at :mod:`medcot.kaggle.client.orchestrate`, which does all of it. Building can be undone;
pushing spends quota: ``build`` and ``push`` are apart.
"""
