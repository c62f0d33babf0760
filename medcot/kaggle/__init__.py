"""The same run on Kaggle: bundle it, send it, follow it, bring it home.

``client`` is what your machine does, ``session`` what theirs does. May import: planning, data, runs
and what lies below them.
"""
