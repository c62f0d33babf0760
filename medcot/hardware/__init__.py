"""Detects GPUs, CPU cores and memory without torch.

Start at :func:`medcot.hardware.machine.detect_machine`. ``named_machine("T4")`` describes a
machine other than this one, ``choose_preset`` picks a preset for a machine. Standard library
only, because a Kaggle session imports it before anything is installed. May import: records,
errors, paths.
"""
