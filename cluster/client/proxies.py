"""HTTP proxies of the environment: never asked for addresses of this machine, and named where they may have answered."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from urllib.request import proxy_bypass

import httpx


def direct_mounts(urls: Iterable[str]) -> dict[str, None]:
    """``mounts`` of an httpx client that reaches those of ``urls`` that are loopback addresses without a proxy."""
    hosts = {httpx.URL(url).host for url in urls}
    return {f"all://{f'[{host}]' if ':' in host else host}": None for host in sorted(hosts) if _is_loopback(host)}


def proxy_note(url: str) -> str:
    """A sentence that names the variable whose proxy stands between this process and ``url``; empty if there is none."""
    parsed = httpx.URL(url)
    if _is_loopback(parsed.host) or proxy_bypass(parsed.host):
        return ""
    for variable in (f"{parsed.scheme}_proxy", f"{parsed.scheme.upper()}_PROXY", "all_proxy", "ALL_PROXY"):
        if os.environ.get(variable):
            return f"; the proxy in {variable} stands in between: add {parsed.host} to no_proxy to go past it"
    return ""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
