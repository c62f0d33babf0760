"""How a command ends: its exit code and at most one line, and the same in every process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import click

from medcot.distributed import comm
from medcot.errors import Cancelled, InputError, RunFailed


@contextmanager
def endings() -> Iterator[None]:
    """Turn every way in which the block can end into an exit code and at most one line."""
    try:
        yield
    except InputError as error:
        _end(2, str(error))
    except click.UsageError as error:
        _end(2, error.format_message())
    except RunFailed as error:
        _end(1, str(error))
    except (Cancelled, KeyboardInterrupt, click.Abort):
        _end(130, "stopped; finished work is kept, --resume continues the run")
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except SystemExit as error:
        if error.code:
            comm.fail(int(error.code), "see its own lines above.")
        raise
    except Exception as error:
        comm.fail(1, f"{type(error).__name__}: {error}")
        raise


def _end(code: int, line: str) -> NoReturn:
    """Leave with ``code``. Of several processes the main one says why, wherever it happened."""
    first = comm.fail(code, line)
    if comm.is_main():
        click.echo(f"medcot: {line if first.rank == 0 else first.explain()}", err=True)
    if comm.world_size() > 1:
        comm.leave(first.code)
    sys.exit(first.code)
