"""Scores a model that is known only by :class:`medcot.evaluation.interface.ModelTools`.

Start at :mod:`medcot.evaluation.suite`: ``make_examination`` decides what is asked, ``examine``
asks it, ``summarise`` sums it up. ``answer_extraction`` reads letters from free text,
``rubric`` checks claims. May import: data, runs, config, stats, records, errors, paths.
"""
