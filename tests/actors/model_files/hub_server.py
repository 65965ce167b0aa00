"""As much of the Hugging Face hub's HTTP interface as a snapshot download uses, serving one local folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

REVISION = "b" * 40


@contextmanager
def serve_repository(folder: Path, repo: str) -> Iterator[tuple[str, list[str]]]:
    """Yield (endpoint URL, names of the files fetched so far)."""
    fetched: list[str] = []
    files = {path.name: path for path in folder.iterdir()}

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, with_body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            prefix = f"/{repo}/resolve/{REVISION}/"
            if path.startswith(f"/api/models/{repo}/tree/"):
                entries = [
                    {"type": "file", "path": n, "size": p.stat().st_size, "oid": "0" * 40} for n, p in files.items()
                ]
                self.reply(json.dumps(entries).encode(), "application/json", with_body)
            elif path.startswith(f"/api/models/{repo}"):
                siblings = [{"rfilename": name, "size": path.stat().st_size} for name, path in files.items()]
                info = {"id": repo, "modelId": repo, "sha": REVISION, "siblings": siblings, "tags": []}
                self.reply(json.dumps(info).encode(), "application/json", with_body)
            elif path.startswith(prefix) and path.removeprefix(prefix) in files:
                name = path.removeprefix(prefix)
                if with_body:
                    fetched.append(name)
                self.reply(files[name].read_bytes(), "application/octet-stream", with_body)
            else:
                self.send_error(404)

        def reply(self, body: bytes, kind: str, with_body: bool) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", REVISION)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Keep the test's output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", fetched
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
