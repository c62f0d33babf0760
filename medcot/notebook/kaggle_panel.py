"""Builds kernels for the notebook's Kaggle panel, and pushes them when told to."""

from __future__ import annotations

from dataclasses import dataclass

from medcot.config.schema import RunConfig
from medcot.kaggle.client.build import Kernel, KernelOptions, build, find_owner
from medcot.kaggle.client.orchestrate import AccountCheck, check_account
from medcot.kaggle.client.push_state import PushRecord
from medcot.runs.directory import RunDirectory, new_run_path


@dataclass(frozen=True, slots=True)
class BuiltKernel:
    """A kernel folder, ready to push, and the run that it belongs to."""

    kernel: Kernel
    run: RunDirectory


def look_at_account() -> AccountCheck:
    """Check, by asking Kaggle, whether a push could be made from this machine."""
    return check_account()


def build_kernel(config: RunConfig) -> BuiltKernel:
    """Build the kernel folder of a new run of ``config``; nothing is sent.

    Raises:
        InputError: no account name is known, or the config names files that cannot be sent.
    """
    run = RunDirectory(new_run_path(config))
    return BuiltKernel(build(config, run, find_owner(), KernelOptions()), run)


def push_kernel(built: BuiltKernel) -> PushRecord:
    """Push a built kernel, which starts a session and spends quota.

    Raises:
        InputError, RunFailed: as :func:`medcot.kaggle.client.push.push`.
    """
    from medcot.kaggle.client.account import connect
    from medcot.kaggle.client.push import push
    from medcot.kaggle.client.retry import RetryPolicy

    account = connect(RetryPolicy(limit_s=60.0))
    return push(account, built.kernel, built.run, lambda _: None)
