"""A look at the environment before anything starts: each fault is one line that says what to do."""

from __future__ import annotations

import errno
import os
import resource
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path

from cluster.errors import BiremeError
from cluster.process.cache import cache_dir
from cluster.process.trusted_path import make_folder
from deployments.start.run_files.past_sessions import server_on

_CONNECT_S = 2.0
_FEWEST_DESCRIPTORS = 1024


class PortTakenError(BiremeError):
    """Somebody listens there already."""


class OwnServerError(PortTakenError):
    """It is a server of this user's."""


def check_descriptors() -> None:
    """Raise BiremeError if a process may have too few files and connections open for Ray, or for HAProxy's least."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < _FEWEST_DESCRIPTORS:
        raise BiremeError(
            f"a process may have {most} files and connections open (ulimit -Hn): {_FEWEST_DESCRIPTORS} are the least, 8192 "
            "or more are better; raise it with `ulimit -n`, LimitNOFILE= or docker's --ulimit nofile="
        )


def check_temporary_folder(environment: Mapping[str, str] = os.environ) -> None:
    """Raise BiremeError if TMPDIR is set to what is no folder to write to, on a disk that is full or read-only, for example."""
    folder = environment.get("TMPDIR")
    if not folder:
        return
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"x")
    except OSError as error:
        raise BiremeError(
            f"TMPDIR={folder} cannot be written to: {error.strerror}; make it writable, or unset TMPDIR"
        ) from None


def check_cache() -> None:
    """Raise BiremeError if the folder of what is downloaded and built is none, and cannot be made. One that is read-only may hold
    all that is needed."""
    folder = cache_dir()
    try:
        make_folder(folder)
        why = None if folder.is_dir() else "it is no folder"
    except OSError as error:
        why = f"it cannot be made: {error.strerror}"
    if why is not None:
        named = f"BIREME_CACHE={folder}" if os.environ.get("BIREME_CACHE") else f"the cache {folder}"
        raise BiremeError(f"{named}: {why}; set BIREME_CACHE to a folder of your own that can be written to")


def check_listening(host: str, port: int) -> None:
    """Raise BiremeError if nothing can listen on ``port`` of ``host`` on this machine."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise BiremeError(f"host {host!r} is no address that is known here; choose another with --host") from None
    family, kind, protocol, _, address = found[0]
    try:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortTakenError(f"port {port} is taken on this machine; choose another with --port") from None
        if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            message = f"host {host!r} is no address of this machine; choose another with --host"
        else:
            message = (
                f"nothing can listen on port {port} of {host!r}: {error.strerror}; choose others with --host and --port"
            )
        raise BiremeError(message) from None


def check_port(host: str, port: int, base: Path) -> None:
    """As ``check_listening``; says so if it is a server of this user's that listens there.

    Args:
        base: below which its Ray keeps its sessions.
    """
    try:
        check_listening(host, port)
    except PortTakenError:
        if (pid := server_on(port, base)) is None:
            raise
        raise OwnServerError(
            f"port {port} is taken by a Bireme server of yours that runs (process {pid}); end it with Ctrl-C in its terminal or "
            f"`kill {pid}`, or choose another with --port"
        ) from None


def check_cluster(address: str, has_key_file: bool, environment: Mapping[str, str] = os.environ) -> None:
    """Raise BiremeError if no Ray answers at ``address``, or a key in this shell protects nothing there.

    Args:
        address: as Ray takes it: ``host:port``, ``ray://host:port`` or ``auto``.
        has_key_file: the application has a file of keys.
    """
    host, colon, port = address.rpartition("://")[2].partition("/")[0].rpartition(":")
    if colon and port.isdecimal() and int(port) < 2**16:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
        except (OSError, UnicodeError) as error:
            raise BiremeError(
                f"no Ray answers at {address} ({getattr(error, 'strerror', None) or 'no answer in 2 s'}); "
                "start it there, or unset RAY_ADDRESS for a Ray of this machine's own"
            ) from None
    if environment.get("BIREME_API_KEY") and not has_key_file:
        raise BiremeError(
            f"BIREME_API_KEY in this shell protects nothing on the cluster at {address}: its nodes read the variable where Ray "
            "is started; set api_keys_file, or unset BIREME_API_KEY here"
        )
