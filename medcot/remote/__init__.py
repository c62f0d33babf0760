"""The same run on a borrowed machine: bundle it, send it to Kaggle, follow it, bring it home.

The command line (``kaggle/push.py``), the notebook's panel and ``medcot doctor`` call these
modules; the kernel itself runs :mod:`medcot.remote.session`, which needs no third-party import.
"""
