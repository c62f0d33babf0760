"""Computes paired intervals, tests, verdicts and power. Nothing here knows about models.

Start at :mod:`medcot.stats.paired`; :mod:`medcot.stats.power` computes what a number of rows can
detect. May import: records, errors, paths.
"""
