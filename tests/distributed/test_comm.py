"""What processes say to one another: alone nothing, and in failure one line and one exit code."""

from __future__ import annotations

import pytest

from medcot.distributed import comm
from medcot.errors import Cancelled, RunFailed


@pytest.fixture(autouse=True)
def without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def test_without_a_launcher_one_process_is_the_main_one() -> None:
    assert (comm.rank(), comm.world_size(), comm.is_main()) == (0, 1, True)


def test_one_process_answers_its_own_questions_without_a_store() -> None:
    assert comm.from_main(lambda: "made here") == "made here"
    assert comm.sum_over_ranks(2.5) == 2.5
    assert not comm.stop_requested()
    assert comm.peer_error() is None
    comm.broadcast("nobody")
    comm.close()


def test_a_failure_of_one_process_is_its_own_line() -> None:
    first = comm.announce_failure(2, "--rank: found 0; expected a whole number from 1 to 256")
    assert (first.rank, first.code) == (0, 2)
    assert first.line.startswith("--rank")


def test_another_processs_failure_names_the_process_and_its_host() -> None:
    ended = comm.ProcessFailure(3, "node-b", 1, "training: process 3 ran out of memory.")
    assert isinstance(ended.as_error(), RunFailed)
    assert ended.explain().startswith("process 3 on node-b: training")


def test_a_stop_of_one_process_is_a_stop_of_all_and_no_failure() -> None:
    ended = comm.ProcessFailure(1, "node-b", 130, "stopped")
    assert isinstance(ended.as_error(), Cancelled)
    assert ended.explain() == "stopped"
