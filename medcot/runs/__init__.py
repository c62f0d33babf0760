"""A run on disk.

Start at :class:`medcot.runs.directory.RunDirectory`, the only writer; ``history.read_run`` reads
finished ones, ``environment`` describes where a run happened. May import: config, hardware,
records, errors, paths.
"""
