"""Holds every setting of a run in one frozen record.

Start at :class:`medcot.config.schema.RunConfig`. ``presets.make_config(name, overrides)`` builds
the config of a preset. ``resolve.resolve`` applies the order of precedence: flag, environment,
file, preset. May import: records, errors, paths.
"""
