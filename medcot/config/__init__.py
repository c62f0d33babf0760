"""What a run computes, in one frozen record.

Start at :class:`medcot.config.schema.RunConfig`. ``presets.make_config(name, overrides)`` gives the
config of a preset, ``resolve.resolve`` lets a flag win over the environment, the environment over a
file, and a file over the preset. May import: records, errors, paths, hardware.
"""
