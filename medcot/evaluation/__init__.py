"""Scores a model that it knows only by :class:`medcot.evaluation.interface.ModelTools`.

Start at :mod:`medcot.evaluation.suite`: ``make_suite`` decides what is asked, ``evaluate`` asks it,
``summarise`` aggregates the rows. ``answer_extraction`` reads letters from free text, ``rubric``
checks claims, ``decontaminate`` drops questions that were trained on. May import: data, runs,
config, stats, records, errors, paths.
"""
