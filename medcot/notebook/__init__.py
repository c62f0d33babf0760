"""What ``apps/tutorial.py`` shows: its controls, jobs, views and pages, and the static site.

Start at the notebook itself. ``controls`` makes a config of the widgets, ``preview`` answers every
slider move, ``jobs`` runs what takes minutes, ``views`` draws. Nothing imports this package.
"""
