"""Takes a run's model away: each format is made, loaded by its own program, and proved.

Begin at :func:`medcot.exporting.workflow.export_run`.
"""
