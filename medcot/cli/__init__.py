"""Provides the command line, ``medcot``.

Start at :func:`medcot.cli.main.main`. ``options`` derives the flags from ``RunConfig``'s fields and
``config_command`` adds them to a command, ``progress`` draws on the terminal, ``exit_codes`` turns
every way of ending into a code and a line. Nothing imports this package. May import: everything
except the notebook.
"""
