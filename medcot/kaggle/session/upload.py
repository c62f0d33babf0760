"""Upload a finished run's adapter and report to a private repository of the hub.

A separate program, so that only this one and the training get the token:
``python -m medcot.kaggle.session.upload RUN OWNER/NAME``, with HF_TOKEN in the environment.
"""

from __future__ import annotations

import sys
from pathlib import Path

from medcot.errors import one_line
from medcot.network import limit_hub_requests, prepare_network


def upload(run: Path, repository: str) -> str:
    """Upload the adapter and the report of ``run``, and return the repository's address.

    A new repository is private; an existing one keeps its visibility.

    Raises:
        huggingface_hub's errors: no token, no permission, no connection.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    files = {path.name: path for path in sorted((run / "adapter").iterdir()) if path.is_file()}
    files |= {name: run / name for name in ("report.md", "report.html", "report.json")}
    limit_hub_requests()
    api = HfApi()
    address = api.create_repo(repository, private=True, exist_ok=True)
    api.create_commit(
        repository,
        [CommitOperationAdd(name, path) for name, path in files.items() if path.is_file()],
        commit_message="Add the adapter and its report",
    )
    return str(address)


def main(arguments: list[str]) -> int:
    """Upload, and return 0; on any error print one line and return 1."""
    prepare_network()
    run, repository = arguments
    try:
        print(f"uploaded to {upload(Path(run), repository)}")
    except Exception as error:  # noqa: BLE001 - the run itself is complete, whatever fails here
        print(f"upload to {repository} failed: {one_line(str(error))}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
