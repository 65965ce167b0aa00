"""One application with the default model for all end-to-end tests, on the device that ``tests.served_device`` names."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import ray
from openai import OpenAI
from ray import serve
from ray.serve.handle import DeploymentHandle

from cluster.client import Client
from cluster.config import LLMConfig
from deployments.llm import build_openai_app
from deployments.start.serve_environment import SERVE_ENVIRONMENT
from tests.engines import TINY_CONFIG
from tests.served_device import served_on_device
from tests.waiting import wait_for

DOOR = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
KEYS = ["first-key", "second-key"]
ORIGIN = "https://chat.example"
ALIAS = "another/name"
CALLING = "calling"
# What Hermes and Qwen are told, less what matters to no test.
_CALLING_TEMPLATE = (
    "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{# <tool_call> #}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
    "{% if enable_thinking is defined and enable_thinking %}<think>{# </think> #}{% endif %}"
)


@dataclass
class App:
    """A running application.

    Attributes:
        url: without /v1.
        engines: handle of the engine deployment, for questions that HTTP does not answer.
    """

    url: str
    engines: DeploymentHandle

    def client(self) -> Client:
        return Client(self.url, api_key=KEYS[1], timeout=120)

    def openai(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=KEYS[0], max_retries=0, timeout=120)

    def post(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        # json.dumps escapes what is not ASCII, so that a lone surrogate can be sent too.
        headers = {"Authorization": f"Bearer {KEYS[0]}", "Content-Type": "application/json"}
        return httpx.post(self.url + path, content=json.dumps(body), headers=headers, timeout=120, **options)

    def stats(self) -> dict:
        """Counters of the engine, after its integrity was checked."""
        return self.engines.check_integrity.remote().result(timeout_s=60)

    def wait_until_idle(self, timeout_s: float = 5.0) -> dict:
        """The engine's counters once nothing runs or waits, and no slot is on its way out."""
        busy = "num_requests_running", "num_requests_waiting", "num_slots_leaving"
        return wait_for(
            lambda: sum((stats := self.stats())[name] for name in busy) == 0 and stats,
            timeout_s,
            "the engine still has requests",
        )


def _is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="session")
def app(smollm2_source) -> Iterator[App]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Processes of the cluster inherit it; a person who runs Serve alone sets it like the other switches.
    os.environ[DOOR] = SERVE_ENVIRONMENT[DOOR]
    # As many CPUs as the smallest machine the application is made for.
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        settings = served_on_device(
            max_num_seqs=4,
            max_queued_requests=8,
            max_queue_share=0.75,
            api_keys=KEYS,
            allowed_origins=[ORIGIN],
            max_prompt_bytes=100_000,
            max_choices=16,
            model_aliases=[ALIAS],
            ttft_target_s=60.0,
            tpot_target_s=10.0,
        )
        serve.run(build_openai_app(LLMConfig(**settings)))
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: _is_healthy(url), 60, "the application is not ready")
        yield App(url, serve.get_deployment_handle("LLMServer", "default"))
    finally:
        serve.shutdown()
        ray.shutdown()
        del os.environ[DOOR]


@pytest.fixture(scope="module")
def calling(app: App, smollm2_tokenizer, tmp_path_factory) -> Iterator[App]:
    """Beside the default application one of random weights, whose chat template knows tools and thinking."""
    folder = tmp_path_factory.mktemp("calling")
    eos = smollm2_tokenizer.eos_token_ids[0]
    shape = {"vocab_size": smollm2_tokenizer.vocab_size, "max_position_embeddings": 4096, "eos_token_id": eos}
    (folder / "config.json").write_text(json.dumps(TINY_CONFIG | shape))
    smollm2_tokenizer._backend.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(_CALLING_TEMPLATE)
    settings = {
        "model": str(folder), "load_format": "dummy", "model_id": CALLING, "api_keys": KEYS, "max_num_seqs": 4,
        "num_kv_blocks": 512, "num_threads": 1, "runner_num_cpus": 0.1, "ingress_config": {"num_replicas": 1},
    }  # fmt: skip
    serve.run(build_openai_app(LLMConfig(**served_on_device(**settings))), name=CALLING, route_prefix=f"/{CALLING}")
    served = App(f"{app.url}/{CALLING}", serve.get_deployment_handle("LLMServer", CALLING))
    wait_for(lambda: httpx.get(served.url + "/health").status_code == 200, 60, "the application is not ready")
    yield served
    serve.delete(CALLING)
