"""One Kaggle account through Kaggle's own client; no other module knows its quirks."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from medcot.errors import InputError, RunFailed, one_line
from medcot.kaggle.client.api_types import (
    OutputFile,
    Quota,
    RemoteKernel,
    SaveAnswer,
    SessionStatus,
)
from medcot.kaggle.client.connection import (
    credentials_error,
    open_client,
    read_log,
    version_label,
)
from medcot.kaggle.client.retry import RequestRefused, RetryPolicy, call_with_retries

SOURCE_KINDS = ("tags", "dataset_sources", "competition_sources", "kernel_sources", "model_sources")
"""Kinds of source that a push can name wrongly; Kaggle starts the version without them."""
_MOST_PAGES = 1000
"""Of a list of output files: a hundred files each."""


class Account:
    """A signed-in account. ``policy`` says how calls are retried, except `save` and `follow`."""

    def __init__(self, api: Any, policy: RetryPolicy) -> None:
        self._api, self.policy = api, policy

    @property
    def user(self) -> str:
        """The account's user name."""
        return str(self._api.config_values.get("username") or "")

    def quota(self) -> Quota | None:
        """Return the GPU quota. Only this call tells bad credentials from a wrong name.

        None if Kaggle reports no quota, as for an account that never had a GPU.

        Raises:
            InputError: Kaggle refuses the credentials.
        """
        from kagglesdk.kernels.types import kernels_api_service as k

        try:
            answer = self._kernels(
                "get_accelerator_quota_statistics",
                k.ApiGetAcceleratorQuotaStatisticsRequest(),
                "the quota",
            )
        except RequestRefused as error:
            if error.status in (401, 403):
                raise credentials_error(f"refused by Kaggle ({error.status})") from None
            raise
        gpu = answer.gpu_quota
        if gpu is None or not (gpu.total_time_allowed or gpu.has_ever_run):
            return None
        hours = [_hours(t) for t in (gpu.time_used, gpu.time_reserved, gpu.total_time_allowed)]
        return Quota(*hours, refresh=answer.quota_refresh_time)

    def kernel(self, ref: str, version: int | None = None) -> RemoteKernel | None:
        """Return the kernel ``OWNER/SLUG``, or None: Kaggle answers 403 if it does not exist.

        Args:
            ref: the kernel.
            version: its version; None is the newest one.
        """
        from kagglesdk.kernels.types import kernels_api_service as k

        request = k.ApiGetKernelRequest()
        request.user_name, request.kernel_slug = ref.split("/")
        if version is not None:
            request.version_label = version_label(version)
        try:
            answer = self._kernels("get_kernel", request, f"the kernel {ref}")
        except RequestRefused as error:
            if error.status in (403, 404):
                return None
            raise
        source = answer.blob.source if answer.blob is not None else ""
        version = answer.metadata.current_version_number if answer.metadata is not None else 0
        return RemoteKernel(int(version or 0), source or "")

    def save(self, folder: Path, limit_s: int) -> SaveAnswer:
        """Push ``folder`` as a new version, which starts it. Never retried here.

        Raises:
            RequestRefused, requests' errors: untranslated, since the caller knows what to do next.
        """
        with contextlib.redirect_stdout(io.StringIO()):
            answer = self._api.kernels_push(str(folder), timeout=str(limit_s))
        invalid = {kind: tuple(getattr(answer, f"invalid_{kind}") or ()) for kind in SOURCE_KINDS}
        version = answer.version_number or 0
        return SaveAnswer(answer.ref or "", answer.url or "", version, answer.error or "", invalid)

    def status(self, ref: str, version: int) -> SessionStatus | None:
        """Return the state of ``version``'s session, or None if Kaggle does not know it (yet)."""
        from kagglesdk.kernels.types import kernels_api_service as k

        request = k.ApiGetKernelSessionStatusRequest()
        request.user_name, request.kernel_slug = ref.split("/")
        request.version_label = version_label(version)
        try:
            answer = self._kernels("get_kernel_session_status", request, f"the status of {ref}")
        except RequestRefused as error:
            if error.status in (403, 404):
                return None
            raise
        return SessionStatus(answer.status.name, answer.failure_message or "")

    def outputs(self, ref: str, version: int) -> tuple[list[OutputFile], str]:
        """Return every output file of ``version``, over all pages, and its log as text.

        Raises:
            RunFailed: The list of files does not end.
        """
        from kagglesdk.kernels.types import kernels_api_service as k

        files: list[OutputFile] = []
        log, token = "", ""
        for _ in range(_MOST_PAGES):
            request = k.ApiListKernelSessionOutputRequest()
            request.user_name, request.kernel_slug = ref.split("/")
            request.version_label, request.page_size = version_label(version), 100
            request.page_token = token
            answer = self._kernels("list_kernel_session_output", request, f"the output of {ref}")
            files += [OutputFile(file.file_name, file.url) for file in answer.files or []]
            log = log or answer.log or ""
            if not answer.next_page_token or answer.next_page_token == token:
                return files, "".join(read_log(log))
            token = answer.next_page_token
        raise RunFailed(
            "fetch",
            f"Kaggle lists more than {len(files):,} output files.",
            "Nothing was written; look at the version's output on Kaggle.",
        )

    def follow(self, ref: str, version: int) -> Iterator[str]:
        """Yield the log of ``version`` from its beginning, as it is written.

        Raises:
            RequestRefused, requests' errors: the stream is not available, or was cut.
        """
        with self._api.build_kaggle_client() as client:
            http = client._http_client
            base = http._endpoint if "api." in http._endpoint else f"{http._endpoint}/api"
            response = http._session.get(
                f"{base}/v1/kernels/logs/stream/{ref}",
                params={"versionLabel": version_label(version)},
                headers={"Accept": "text/event-stream, */*"},
                stream=True,
            )
            with response:
                response.raise_for_status()
                if "event-stream" not in response.headers.get("Content-Type", ""):
                    yield from read_log(response.text)
                    return
                for line in response.iter_lines(decode_unicode=True):
                    payload = line[5:].lstrip() if line and line.startswith("data:") else ""
                    if payload == "END_OF_LOG":
                        return
                    if payload:
                        yield from read_log(f"[{payload}]")

    def is_private_dataset(self, ref: str) -> bool | None:
        """Return whether the data set is private, or None if it does not exist."""
        from kagglesdk.datasets.types import dataset_api_service as d

        request = d.ApiGetDatasetRequest()
        request.owner_slug, request.dataset_slug = ref.split("/")
        try:
            answer = self._call(
                lambda client: client.datasets.dataset_api_client.get_dataset(request),
                f"the data set {ref}",
            )
        except RequestRefused as error:
            if error.status in (403, 404):
                return None
            raise
        return bool(answer.is_private)

    def upload_dataset(self, folder: Path, ref: str) -> None:
        """Upload ``folder`` as the newest version of the private data set ``ref``, and wait for it.

        Raises:
            RequestRefused: Kaggle did not accept it.
        """
        answer = call_with_retries(
            lambda: self._send_dataset(folder, ref), self.policy, f"the data set {ref}"
        )
        if answer.error or (answer.status or "").lower() not in ("", "ok"):
            raise RequestRefused(200, answer.error or answer.status)
        for _ in range(120):
            status = self._call(lambda _: self._api.dataset_status(ref), f"the data set {ref}")
            if str(status).lower() == "ready":
                return
            self.policy.sleep(5)
        raise RequestRefused(200, f"the data set {ref} was not ready after 10 minutes")

    def _send_dataset(self, folder: Path, ref: str) -> Any:
        """Create the data set, or a new version if an earlier try or push has created it."""
        exists = self.is_private_dataset(ref)
        if exists is False:
            raise InputError(
                "--code dataset", f"{ref} is a public data set", "make it private or rename it"
            )
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            if exists is None:
                return self._api.dataset_create_new(str(folder), public=False, quiet=True)
            return self._api.dataset_create_version(str(folder), "medcot", quiet=True)

    def _kernels(self, method: str, request: Any, what: str) -> Any:
        def ask(client: Any) -> Any:
            return getattr(client.kernels.kernels_api_client, method)(request)

        return self._call(ask, what)

    def _call(self, ask: Callable[[Any], Any], what: str) -> Any:
        def call() -> Any:
            try:
                with self._api.build_kaggle_client() as client:
                    return ask(client)
            except (TypeError, AttributeError, KeyError, RecursionError) as error:
                why = one_line(f"{type(error).__name__}: {error}", 80)
                raise RunFailed(
                    "Kaggle", f"the answer to {what} is not readable ({why}).", "Try again later."
                ) from error

        return call_with_retries(call, self.policy, what)


def _hours(time: timedelta | None) -> float:
    return time.total_seconds() / 3600 if time else 0.0


def connect(policy: RetryPolicy | None = None) -> Account:
    """Sign in with this machine's token, key in the environment, or kaggle.json.

    Raises:
        InputError: the client is not installed, or there are no valid credentials.
    """
    policy = policy or RetryPolicy()
    return Account(open_client(policy), policy)
