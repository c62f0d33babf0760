"""transformers takes a process with marimo in it for a Jupyter kernel; here that is denied."""

from __future__ import annotations

import sys


def deny_jupyter() -> None:
    """Let transformers, trl and unsloth be imported where marimo is: in every way of the notebook.

    ``transformers.utils.is_in_notebook`` is true as soon as marimo is among the modules, and its
    ``Trainer`` then imports a progress bar that needs IPython, which marimo does not.
    """
    if "marimo" not in sys.modules:
        return  # Without it nothing is to be imported before unsloth, which patches what it finds.
    from transformers import utils
    from transformers.utils import import_utils

    for module in (utils, import_utils):
        vars(module)["is_in_notebook"] = lambda: False
