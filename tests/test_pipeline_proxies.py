"""Proxy variables of the environment, and what httpx makes of them afterwards."""

import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest.mock import patch

import httpx
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from pipeline.checkpoint.download import fetch_checkpoint
from pipeline.machine.proxies import settle_proxies

NOWHERE = "http://127.0.0.1:1"  # nothing listens there
OWN = ("localhost", "127.0.0.1", "::1", "video.example.org")


@pytest.fixture
def variables():
    """Replaces all proxy variables; a dictionary that goes on as the environment."""
    with patch.dict(os.environ):
        for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
            del os.environ[name]
        yield os.environ


def test_without_proxies_nothing_is_set(variables):
    before = dict(variables)
    settle_proxies()
    assert variables == before


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        pytest.param("fe80::/10", "", id="network-of-ipv6"),
        pytest.param("[::1]", "::1", id="brackets"),
        pytest.param("localhost, .example.org ,10.0.0.0/8", "localhost,.example.org,10.0.0.0/8", id="good-ones"),
        pytest.param("host:port,münchen.de,all://fe80::/10,", "", id="no-addresses"),
        pytest.param("*", "*", id="everything"),
    ],
)
@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
def test_entries_that_httpx_refuses_are_left_out(variables, name, given, kept):
    variables |= {name: given, "HTTPS_PROXY": NOWHERE}
    settle_proxies("video.example.org")
    expected = dict.fromkeys((*filter(None, kept.split(",")), *OWN))
    assert variables["no_proxy"] == variables["NO_PROXY"] == ",".join(expected)
    httpx.Client().close()


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
def test_this_machine_is_reached_without_a_proxy(variables, name):
    variables[name] = NOWHERE
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        with pytest.raises(httpx.ConnectError):
            httpx.get(address)
        settle_proxies()
        assert httpx.get(address).status_code == 501  # it knows no GET, and said so
        server.shutdown()


def test_socks_as_desktops_write_it(variables):
    variables["ALL_PROXY"] = "socks://127.0.0.1:1080/"
    settle_proxies()
    assert variables["ALL_PROXY"] == "socks5://127.0.0.1:1080/"


@pytest.mark.parametrize("proxy", ["socks4://ada:secret@host:1", "ftp://host", "http://host:port", "://"])
def test_no_proxy_that_httpx_can_use(variables, proxy):
    variables["HTTPS_PROXY"] = proxy
    with pytest.raises(ValueError, match="the variable HTTPS_PROXY names no proxy that can .* unset it") as told:
        settle_proxies()
    assert "secret" not in str(told.value)


def test_without_socksio(variables, monkeypatch):
    monkeypatch.setattr("pipeline.machine.proxies.find_spec", lambda name: None)
    variables["ALL_PROXY"] = "socks5://127.0.0.1:1080"
    with pytest.raises(ValueError, match="ALL_PROXY names a SOCKS proxy, which needs the package socksio; `make inst"):
        settle_proxies()


@pytest.mark.parametrize("proxy", [NOWHERE, "socks5://127.0.0.1:1"])
def test_the_hub_behind_a_dead_proxy(variables, monkeypatch, tmp_path, proxy):
    variables |= {"ALL_PROXY": proxy, "NO_PROXY": "fe80::/10"}
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    close_session()  # of other tests, made without a proxy
    try:
        with pytest.raises(ValueError, match="the Hugging Face Hub, which may .*, cannot be reached; check"):
            fetch_checkpoint("someone/longcat")
    finally:
        close_session()
