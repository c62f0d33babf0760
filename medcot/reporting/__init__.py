"""Turns scored rows into a report: facts, Markdown, figures.

Start at :func:`medcot.reporting.build.build_report`, then ``markdown.render_markdown`` and
``figures.write_figures``. May import: planning, evaluation, stats and the layers below them.
"""
