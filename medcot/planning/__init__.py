"""The fastest settings that fit a machine, what they cost, and why they were chosen.

Start at :func:`medcot.planning.plan.make_plan`. It is pure: no torch, no network, no file but the
bundled calibration. ``search`` enumerates what ``constraints`` leave open; ``memory_model`` and
``speed_model`` cost it. May import: data, config, hardware, records, errors, paths.
"""
