"""Runs on Kaggle's machine before anything is installed: look, install, train, export, sign off.

Start at :func:`medcot.kaggle.session.main.open_session`. Standard library and ``packaging`` only.
May import: hardware, credentials, network, records, errors, paths.
"""
