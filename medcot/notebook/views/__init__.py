"""Renders values as HTML. Nothing here trains, scores or decides.

Start at :mod:`medcot.notebook.views.pages`. Every text from a model or a data set is escaped
here, and only here. Figures are SVG in the page's own colors, so a page needs no script and no
network to show them.
"""
