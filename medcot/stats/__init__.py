"""Paired intervals, tests and power. Nothing here knows of models.

Start at :mod:`medcot.stats.paired`; :mod:`medcot.stats.power` says what a number of rows can show.
May import: records, errors, paths.
"""
