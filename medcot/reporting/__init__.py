"""From scored rows to the report: its facts, its Markdown, its figures.

Start at :func:`medcot.reporting.build.build_report`; then ``markdown.render_markdown`` and
``figures.write_figures``. May import: planning, evaluation, stats and what lies below them.
"""
