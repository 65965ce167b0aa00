"""The page's nginx in front of the server: TLS for the official client, and events that come one by one."""

from __future__ import annotations

import re
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from deployments.start.serve_environment import free_port
from tests.deployments.conftest import KEYS, App, wait_for
from tests.test_docs import ROOT, blocks_marked

# .ci/run unpacks one that is not installed.
_NGINX = (
    shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    or shutil.which("nginx")
    or str(ROOT / "build/nginx/usr/sbin/nginx")
)
_CERTIFICATE = (
    "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost "
    "-addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout api.key -out api.pem"
)
# What surrounds the page's block, with all files in one folder.
_MAIN = """
daemon off; pid nginx.pid; error_log stderr warn;
events {}
http {
    access_log off; client_body_temp_path body; proxy_temp_path proxy;
    fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    %s
}
"""


def of_page(server: str, port: int, folder: Path) -> str:
    """The page's block, for the test's server, port and certificate."""
    (block,) = blocks_marked("proxied")
    block = re.sub(r"listen 443 ssl", f"listen 127.0.0.1:{port} ssl", block)
    return block.replace("/etc/ssl/", f"{folder}/").replace("http://127.0.0.1:8000", server)


@pytest.fixture(scope="module")
def proxied(app: App, tmp_path_factory) -> Iterator[tuple[str, ssl.SSLContext]]:
    """Where the page's proxy listens, and who signed its certificate."""
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    subprocess.run(["openssl", *_CERTIFICATE.split()], cwd=folder, check=True, capture_output=True)
    (folder / "nginx.conf").write_text(_MAIN % of_page(app.url, port, folder))
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen([_NGINX, "-e", "stderr", "-p", folder, "-c", "nginx.conf"], stdout=log, stderr=log)
    url, trusted = f"https://127.0.0.1:{port}", ssl.create_default_context(cafile=str(folder / "api.pem"))

    def answers() -> bool:
        assert process.poll() is None, (folder / "log").read_text()
        try:
            return httpx.get(f"{url}/health", verify=trusted).status_code == 200
        except httpx.ConnectError:
            return False

    try:
        wait_for(answers, 10, "nginx does not answer")
        yield url, trusted
    finally:
        process.terminate()
        process.wait(10)


def reads(url: str, trusted: ssl.SSLContext) -> tuple[int, int]:
    """Events of a stream, and in how many pieces they came."""
    body = {"prompt": "One, two,", "max_tokens": 12, "ignore_eos": True, "stream": True}
    headers = {"Authorization": f"Bearer {KEYS[0]}"}
    with httpx.stream(
        "POST", f"{url}/v1/completions", json=body, headers=headers, verify=trusted, timeout=60
    ) as answer:
        pieces = list(answer.iter_raw())
    return b"".join(pieces).count(b"data: "), len(pieces)


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("openssl") is None, reason="the command openssl is not here, which makes the certificate"
)
@pytest.mark.skipif(not Path(_NGINX).exists(), reason="nginx is not here; .ci/run unpacks Debian's")
def test_the_pages_proxy_has_tls_and_passes_events_on_at_once(proxied):
    url, trusted = proxied
    client = OpenAI(base_url=f"{url}/v1", api_key=KEYS[0], http_client=httpx.Client(verify=trusted))
    asked = {"model": client.models.list().data[0].id, "prompt": "One, two,", "max_tokens": 12, "seed": 1}
    whole = client.completions.create(**asked).choices[0].text
    assert "".join(event.choices[0].text for event in client.completions.create(**asked, stream=True)) == whole
    num_events, num_reads = reads(url, trusted)
    assert (num_events, num_reads > 3) == (13, True)
    assert httpx.get(f"{url}/v1/models", verify=trusted).status_code == 401
