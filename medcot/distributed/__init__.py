"""How the processes of one run find and talk to one another.

Start at :mod:`medcot.distributed.comm`: ``tell``, ``hear``, ``total``, ``any_of``, ``from_main``.
:mod:`medcot.distributed.rendezvous` holds the store that they meet in. With one process
nothing here does anything. May import: records, errors, paths.
"""
