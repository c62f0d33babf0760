"""Provides what ``apps/tutorial.py`` shows: controls, jobs, views, and the static site.

Start at the notebook itself. ``controls`` builds a config from the widgets, ``preview`` answers
every slider move, ``jobs`` runs what takes minutes, ``views`` draws. Nothing imports this
package. May import: everything except the command line.
"""
