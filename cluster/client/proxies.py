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


def heeds_environment(urls: Iterable[str]) -> bool:
    """Whether a proxy of the environment may stand before any of ``urls``; an httpx client that heeds it fails where one is of a
    kind that it cannot use, also if it would never ask it."""
    return not all(_is_loopback(httpx.URL(url).host) for url in urls)


def proxy_fault(error: Exception) -> str:
    """Why httpx takes no proxy of the environment, with the variables at fault; their values may hold passwords."""
    at_fault = [name for name in _names("http", "https", "all") if not _is_usable(os.environ.get(name, ""))]
    if not at_fault and isinstance(error, httpx.InvalidURL):
        named = ", ".join(name for name in _names("no") if os.environ.get(name)) or "no_proxy"
        return f"{named}: expected names and addresses without ports, brackets and IPv6 ranges; or unset it for this command"
    named = ", ".join(at_fault) or "a proxy of the environment"
    if isinstance(error, ImportError):
        return f"{named}: a SOCKS proxy needs the package socksio (pip install 'httpx[socks]'); or unset it for this command"
    return f"{named}: expected http://HOST:PORT, https://HOST:PORT or socks5://HOST:PORT; or unset it for this command"


def _names(*kinds: str) -> list[str]:
    return [name for kind in kinds for name in (f"{kind}_proxy", f"{kind}_proxy".upper())]


def _is_usable(proxy: str) -> bool:
    """Whether httpx may use it without further packages; an empty one is none."""
    try:
        url = httpx.URL(proxy if "://" in proxy else f"http://{proxy}")
    except httpx.InvalidURL:
        return False
    return not proxy or (url.scheme in ("http", "https") and bool(url.host))


def proxy_note(url: str) -> str:
    """A sentence that names the variable whose proxy stands between this process and ``url``; empty if there is none."""
    parsed = httpx.URL(url)
    if _is_loopback(parsed.host) or proxy_bypass(parsed.host):
        return ""
    for variable in _names(parsed.scheme, "all"):
        if os.environ.get(variable):
            return f"; the proxy in {variable} stands in between: add {parsed.host} to no_proxy to go past it"
    return ""


def proxy_of_others(url: str) -> str:
    """What to do that other programs, curl and openai among them, reach ``url`` without a proxy, in a sentence; empty if they do.
    Those of this project ask none for loopback addresses."""
    parsed = httpx.URL(url)
    hosts = [parsed.host, *(["localhost"] if _is_loopback(parsed.host) and parsed.host != "localhost" else [])]
    missing = [host for host in hosts if not proxy_bypass(host)]
    for variable in _names(parsed.scheme, "all"):
        if missing and os.environ.get(variable):
            present = ",".join(dict.fromkeys(os.environ[name] for name in _names("no") if os.environ.get(name)))
            value = ",".join([*([present] if present else []), *missing])
            return (
                f"the proxy in {variable} is asked by curl, openai and others for a server at {parsed.host}: "
                f"export no_proxy={value}"
            )
    return ""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
