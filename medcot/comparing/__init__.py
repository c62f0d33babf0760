"""Compares two runs, or base and tuned model of one: answers, and the paired table of rows.

Start at :func:`medcot.comparing.rows.compare_sides` and :func:`medcot.comparing.answers.ask_both`.
"""
