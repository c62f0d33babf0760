"""Reads and writes a run on disk.

Start at :class:`medcot.runs.directory.RunDirectory`, the only writer. ``history.read_run`` reads
finished runs, ``environment`` describes where a run took place. May import: config, hardware,
records, errors, paths.
"""
