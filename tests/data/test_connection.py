"""How the hub is reached: settings that cannot work, and refusals, are explained by name."""

import re
import ssl

import httpx
import pytest
from huggingface_hub import constants

from medcot.data import connection
from medcot.data.connection import check_connection
from medcot.data.hub import explain_hub_error, load_hub_rows
from medcot.engines.loading import locate
from medcot.errors import InputError


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"HF_ENDPOINT": "hf-mirror.com"}, r"HF_ENDPOINT: .*; set it to https://hf-mirror.com"),
        ({"HF_ENDPOINT": "ftp://hf.co"}, "HF_ENDPOINT: .*; set it to https://hf.co"),
        ({"ALL_PROXY": "socks://127.0.0.1:7890/"}, "ALL_PROXY: found a proxy of the kind socks://"),
        ({"https_proxy": "ftp://ann:secret@x"}, "https_proxy: found a proxy of the kind ftp://"),
        (
            {"ALL_PROXY": "socks5://127.0.0.1:1"},
            r"ALL_PROXY: .*pip install socksio.* http:// proxy",
        ),
        ({"SSL_CERT_FILE": "/nowhere/ca.pem"}, "SSL_CERT_FILE: no such file"),
        ({"SSL_CERT_DIR": "/nowhere"}, "SSL_CERT_DIR: no such file"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name(environment, says, monkeypatch):
    monkeypatch.setattr(connection, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=says) as refusal:
        check_connection(environment)
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize(
    "environment",
    [
        {"HF_ENDPOINT": "https://hf-mirror.com/", "HTTPS_PROXY": "http://127.0.0.1:1"},
        {"HTTP_PROXY": "127.0.0.1:3128", "SSL_CERT_FILE": __file__},
        {"HF_ENDPOINT": "", "ALL_PROXY": ""},
    ],
)
def test_settings_that_work_are_left_alone(environment):
    check_connection(environment)


def test_models_and_data_sets_are_refused_alike(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "hf-mirror.com")
    with pytest.raises(InputError, match="HF_ENDPOINT"):
        locate("owner/a-model-nobody-has")
    with pytest.raises(InputError, match="HF_ENDPOINT"):
        load_hub_rows("owner/data", None)


def failed(kind, message, cause=None):
    error = kind(message)
    error.__cause__ = cause
    return error


UNTRUSTED = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] self-signed")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (failed(httpx.ConnectError, "no", UNTRUSTED), "certificate is not trusted.*SSL_CERT_FILE"),
        (failed(httpx.ProxyError, "407 Proxy Authentication Required"), "proxy refused.*407"),
    ],
)
def test_a_refused_connection_says_what_to_set(error, says):
    for kind in ("dataset", "model"):
        assert re.search(says, str(explain_hub_error(error, "a/b", kind)))


def test_a_cache_that_cannot_be_written_is_named(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/proc/hf/hub")
    error = explain_hub_error(ValueError("Couldn't find any data file"), "a/b", "dataset")
    assert "/proc/hf/hub cannot be written" in str(error)
    assert "HF_HOME" in str(error)
