"""What front ends show: values in, HTML out. Nothing here trains, scores or decides.

Every text of a model or a data set is escaped here, and only here. Figures are SVG in the page's
own colours, so that a page needs no script and no network to show them.
"""
