"""Connects the processes of one run and passes values between them.

Start at :mod:`medcot.distributed.comm`: ``broadcast``, ``receive``, ``sum_over_ranks``,
``any_rank``, ``from_main``. :mod:`medcot.distributed.rendezvous` connects to the key-value store
that all processes share. With one process, nothing here does anything. May import: records,
errors, paths.
"""
