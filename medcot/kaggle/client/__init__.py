"""Builds a kernel on your machine, pushes it, waits for it, and fetches what it made.

Start at :mod:`medcot.kaggle.client.orchestrate`, which does all of it. Building can be undone
and pushing spends quota, so ``build`` and ``push`` are separate modules.
"""
