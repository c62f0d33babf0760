"""The command line. Start at :func:`medcot.cli.main.main`; nothing imports this package."""
