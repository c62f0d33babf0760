"""What the machine has, found without torch.

Start at :func:`medcot.hardware.machine.detect_machine`; ``named_machine("T4")`` stands for one that
is not here, ``choose_preset`` picks a preset for it. Standard library only, because a Kaggle
session imports it before anything is installed. May import: records, errors, paths.
"""
