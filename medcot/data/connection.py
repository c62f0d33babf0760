"""Checks what decides how the hub is reached: its address, proxies and certificates."""

from __future__ import annotations

import os
import ssl
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from medcot.errors import InputError, one_line

PROXIES = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY")
"""Variables that name a proxy; the clients read them in small letters too."""

SCHEMES = ("http", "https", "socks5", "socks5h")
"""The kinds of proxies that the clients know."""


def check_connection(environment: Mapping[str, str] | None = None) -> None:
    """Check the variables by which the hub's clients find it, before they fail on them.

    Raises:
        InputError: an address without its scheme, a proxy of an unknown kind, a SOCKS proxy
            without the package for it, or a certificate file that does not exist.
    """
    found = os.environ if environment is None else environment
    endpoint = found.get("HF_ENDPOINT", "").strip()
    if endpoint and not endpoint.lower().startswith(("http://", "https://")):
        shown = one_line(repr(endpoint), 60)
        needs = f"set it to https://{one_line(endpoint.rpartition('://')[2], 60)}"
        raise InputError("HF_ENDPOINT", f"found {shown} without https://", needs)
    for variable in (name for upper in PROXIES for name in (upper, upper.lower())):
        _check_proxy(variable, found.get(variable, ""))
    for variable in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        path = found.get(variable, "")
        if path and not Path(path).exists():
            needs = "set it to the certificates of your network, or unset it"
            raise InputError(variable, f"no such file ({one_line(path, 100)})", needs)


def explain_connection(chain: Sequence[BaseException], kinds: set[type]) -> tuple[str, str] | None:
    """Return what is wrong with the certificate or the proxy, and what to do, or None.

    Args:
        chain: The exceptions of a failed request, one caused by the next.
        kinds: Their types and the bases of these.
    """
    import httpx

    for error in chain:
        if isinstance(error, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY" in str(error):
            reason = getattr(error, "verify_message", "") or "it cannot be verified"
            got = f"the hub's certificate is not trusted ({one_line(reason, 80)})"
            return got, "set SSL_CERT_FILE to the certificates of your network"
    if httpx.ProxyError in kinds:
        said = next(str(error) for error in chain if isinstance(error, httpx.ProxyError))
        got = f"the proxy refused the connection ({one_line(said, 80)})"
        return got, f"check the address and login in {' or '.join(PROXIES)}"
    return None


def explain_cache(cache: Path) -> tuple[str, str] | None:
    """Return what to do about a folder of the hub's clients that cannot be written, or None."""
    there = next(one for one in (cache, *cache.parents) if one.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            return None
    except OSError as error:
        got = f"{cache} cannot be written ({error.strerror})"
        return got, "set HF_HOME to a folder that can be"


def _check_proxy(variable: str, address: str) -> None:
    scheme, found, _ = address.strip().partition("://")
    if not found:
        return
    if scheme.lower() not in SCHEMES:
        needs = f"expected one of {', '.join(f'{one}://' for one in SCHEMES)}"
        raise InputError(variable, f"found a proxy of the kind {one_line(scheme, 20)}://", needs)
    if scheme.lower().startswith("socks") and find_spec("socksio") is None:
        needs = "install it (pip install socksio), or use an http:// proxy"
        raise InputError(variable, "a SOCKS proxy needs the package socksio", needs)
