"""Proxies of the environment, made such that httpx can read them: the client of Gradio and of the Hugging Face Hub.

It reads the variables whenever a client is made, Gradio's first ones while it is imported, and refuses them all for one
entry that it does not understand. Desktops and companies write some that others do understand.
"""

from __future__ import annotations

import ipaddress
import os
from importlib.util import find_spec
from urllib.request import getproxies_environment

OWN = ("localhost", "127.0.0.1", "::1")
UNUSABLE = (  # without the value, which may hold a password
    "the variable {name} names no proxy that can be used; write one such as http://host:3128 or socks5://host:1080, or "
    "unset it"
)
NO_SOCKS = "the variable {name} names a SOCKS proxy, which needs the package socksio; `make install` adds it"


def settle_proxies(*hosts: str) -> None:
    """Have httpx read this process's variables, and reach this machine and `hosts` without a proxy.

    Entries of NO_PROXY that httpx does not know, such as networks of IPv6 addresses, are left out.

    Raises:
        ValueError: a proxy has a scheme that httpx does not speak here, or is no address at all.
    """
    import httpx

    proxies = getproxies_environment()
    if not proxies:  # on a Mac, variables would hide the proxies of its settings
        return
    for scheme in {"http", "https", "all"} & proxies.keys():
        proxy, name = proxies[scheme], f"{scheme}_proxy"
        if proxy.startswith("socks://"):  # as GNOME's settings have it
            for variable in {name, name.upper()} & os.environ.keys():
                os.environ[variable] = proxy = proxy.replace("socks", "socks5", 1)
        try:
            httpx.Proxy(proxy if "://" in proxy else f"http://{proxy}")
        except (ValueError, httpx.InvalidURL):
            raise ValueError(UNUSABLE.format(name=name.upper())) from None
        if proxy.startswith("socks") and find_spec("socksio") is None:
            raise ValueError(NO_SOCKS.format(name=name.upper()))
    entries = [entry.strip().removeprefix("[").removesuffix("]") for entry in proxies.get("no", "").split(",")]
    entries = [entry for entry in entries if _readable(entry)]
    entries += [host for host in (*OWN, *hosts) if host not in entries]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(entries)


def _readable(entry: str) -> bool:
    import httpx

    try:
        ipaddress.ip_address(entry)
        return True
    except ValueError:
        pass
    try:  # as httpx makes an address of it
        httpx.URL(entry if "://" in entry else f"all://*{entry}")
        return bool(entry)
    except httpx.InvalidURL:
        return False
