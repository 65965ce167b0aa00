"""The served application on a GPU over HTTP: what clients get, what a client that leaves or an engine that dies costs.

``batch_invariant`` makes an answer's bits independent of its neighbours and of being continued, so answers are compared whole.
BIREME_SERVING_DEVICE=cpu tries these tests where there is no GPU.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import paddle
import pytest

from benchmarks.serving.served_app import ServedApp

CONFIG = Path(__file__).parents[2] / "ray_configs" / "smollm2_gpu.yaml"
DEVICE = os.environ.get("BIREME_SERVING_DEVICE", "gpu")
SETTINGS = {
    "device": DEVICE,
    "max_num_seqs": 8,
    "max_queued_requests": 8,
    "batch_invariant": True,
    "max_model_len": 2048,
    "gpu_memory_utilization": 0.6,
}
if DEVICE == "cpu":
    SETTINGS |= {"num_threads": 1, "block_size": 16}
# Long enough that a kill comes in the middle.
LONG = 1000 if DEVICE == "gpu" else 60
ENVIRONMENT = {"RAY_metrics_report_interval_ms": "1000"}
PROMPTS = ["The three largest rivers of Europe are", "Once upon a time", "To bake bread you need", "A prime number is"]


def log_path(name: str) -> str:
    return str(Path(os.environ.get("OUT", "/tmp"), f"{name}.log"))


@pytest.fixture(scope="module")
def app() -> Iterator[ServedApp]:
    served = ServedApp(CONFIG, log_path("serving"), SETTINGS, ENVIRONMENT)
    print(f"ready after {served.seconds_to_start:.1f} s")
    yield served
    served.close()


@pytest.fixture(scope="module")
def client(app: ServedApp):
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=f"{app.url}/v1", api_key="unused", max_retries=0, timeout=120)


def wait_for(condition: Callable[[], Any], timeout_s: float, what: str) -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            result = condition()
        except (OSError, KeyError):
            result = None
        if result:
            return result
        time.sleep(0.05)
    pytest.fail(f"{what} after {timeout_s} s")


def is_idle(app: ServedApp) -> bool:
    engines = app.engines()
    return bool(engines) and all(e["num_requests_running"] + e["num_requests_waiting"] == 0 for e in engines)


def body(app: ServedApp, prompt: str, **options: Any) -> dict[str, Any]:
    return {
        "model": app.model,
        "prompt": prompt,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        **options,
    }


def post(app: ServedApp, content: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        app.url + "/v1/completions", json.dumps(content).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as reply:
        return json.load(reply)


def stream(app: ServedApp, content: dict[str, Any], on_token: Callable[[int], None] = lambda count: None) -> tuple:
    """(text, token ids, finish reason) of a streamed completion that must reach its end."""
    connection = http.client.HTTPConnection("127.0.0.1", app.port, timeout=120)
    connection.request(
        "POST", "/v1/completions", json.dumps({**content, "stream": True}), {"Content-Type": "application/json"}
    )
    response, text, ids, finish, ended = connection.getresponse(), "", [], None, False
    assert response.status == 200, response.read()
    for line in response:
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            assert "error" not in event, event
            for choice in event["choices"]:
                text += choice["text"]
                ids += choice.get("token_ids") or []
                finish = choice["finish_reason"] or finish
                on_token(len(ids))
        ended |= line.startswith(b"data: [DONE]")
    connection.close()
    assert ended
    return text, ids, finish


def stream_all(pool: ThreadPoolExecutor, app: ServedApp, requests: list[dict[str, Any]]) -> list[Future]:
    """Start all streams; returns when each has delivered 20 tokens, with their futures."""
    under_way = threading.Semaphore(0)

    def run(content: dict[str, Any]) -> tuple:
        seen = threading.Event()

        def on_token(count: int) -> None:
            if count >= 20 and not seen.is_set():
                seen.set()
                under_way.release()

        return stream(app, content, on_token)

    futures = [pool.submit(run, content) for content in requests]
    for _ in requests:
        assert under_way.acquire(timeout=60)
    assert not any(future.done() for future in futures)
    return futures


def test_completion_and_chat_answer(app, client):
    completion = client.completions.create(model=app.model, prompt=PROMPTS[0], max_tokens=24, temperature=0)
    assert len(completion.choices[0].text) > 20
    assert completion.usage.completion_tokens == 24
    question = [{"role": "user", "content": "What is the capital of France?"}]
    chat = client.chat.completions.create(model=app.model, messages=question, max_tokens=40, temperature=0)
    assert "Paris" in chat.choices[0].message.content
    assert chat.usage.total_tokens == chat.usage.prompt_tokens + chat.usage.completion_tokens


def test_a_streamed_answer_is_the_whole_answer(app, client):
    options = {"model": app.model, "prompt": PROMPTS[1], "max_tokens": 40, "temperature": 0.9, "seed": 5}
    whole = client.completions.create(**options).choices[0].text
    assert "".join(chunk.choices[0].text for chunk in client.completions.create(**options, stream=True)) == whole
    messages = [{"role": "user", "content": "Count to five."}]
    chunks = client.chat.completions.create(
        model=app.model, messages=messages, max_tokens=30, temperature=0, stream=True
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def test_logprobs_belong_to_the_tokens(app, client):
    answer = client.completions.create(model=app.model, prompt=PROMPTS[2], max_tokens=12, temperature=0, logprobs=3)
    logprobs = answer.choices[0].logprobs
    assert "".join(logprobs.tokens).startswith(answer.choices[0].text)  # without the end token
    for token, value, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert value <= 0 and len(top) >= 3
        assert top[token] == max(top.values()) == value  # greedy


def test_a_stop_sequence_of_several_tokens_ends_the_answer_before_it(app, client):
    options = {"model": app.model, "prompt": PROMPTS[3], "max_tokens": 48, "temperature": 0}
    text = client.completions.create(**options).choices[0].text
    stop = text[len(text) // 2 : len(text) // 2 + 8]
    cut = client.completions.create(**options, stop=[stop, "\0never"])
    assert cut.choices[0].text == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_the_engine_stops_computing_for_a_client_that_vanished(app):
    wait_for(lambda: is_idle(app), 10, "the engine is not idle")
    before = app.engines()[0]["num_generated_tokens"]
    content = json.dumps({**body(app, PROMPTS[0], max_tokens=1900), "stream": True})
    connection = http.client.HTTPConnection("127.0.0.1", app.port, timeout=60)
    connection.request("POST", "/v1/completions", content, {"Content-Type": "application/json"})
    response = connection.getresponse()
    for _ in range(10):
        response.readline()
    response.close()
    connection.close()
    wait_for(lambda: is_idle(app), 10, "the engine goes on")
    assert app.engines()[0]["num_generated_tokens"] - before < 1900


def test_a_full_queue_is_said_at_once_and_nothing_else_suffers(app):
    def ask(number: int) -> int:
        try:
            return len(post(app, body(app, f"{number} {PROMPTS[1]}", max_tokens=LONG))["choices"][0]["token_ids"])
        except urllib.error.HTTPError as error:
            return -error.code if error.headers["Retry-After"] else -1

    with ThreadPoolExecutor(48) as pool:
        results = list(pool.map(ask, range(48)))
    print(f"full queue: {results.count(LONG)} answers, {results.count(-429)} refused")
    assert set(results) == {LONG, -429}
    assert results.count(LONG) >= 16
    wait_for(lambda: is_idle(app), 10, "the engine is not idle")


def test_streams_go_on_bit_for_bit_when_their_runner_is_killed(app):
    """The whole answer, its token ids and its finish reason are those of an undisturbed run."""
    requests = [body(app, prompt, max_tokens=LONG) for prompt in PROMPTS]
    requests += [body(app, prompt, max_tokens=LONG, temperature=1.0, top_p=0.95, seed=11) for prompt in PROMPTS]
    with ThreadPoolExecutor(8) as pool:
        undisturbed = list(pool.map(lambda content: stream(app, content), requests))
        (engine,) = app.engines()
        futures = stream_all(pool, app, requests)
        os.kill(engine["pid"], signal.SIGKILL)
        killed = time.monotonic()
        answers = [future.result() for future in futures]
        print(f"all streams ended {time.monotonic() - killed:.1f} s after the kill")
    assert answers == undisturbed
    (successor,) = wait_for(app.engines, 30, "no engine")
    assert successor["engine_id"] != engine["engine_id"]
    assert app.get("/v1/status")["events"]


def test_status_says_where_the_engine_computes_and_what_holds_the_memory(app):
    (engine,) = wait_for(app.engines, 30, "no engine")
    assert engine["state"] == "running"
    assert engine["device_seconds"] > 0
    if DEVICE == "cpu":
        assert engine["device"] == "cpu"
        return
    memory = engine["memory"]
    print(engine["device"], memory)
    assert engine["device"] == paddle.device.cuda.get_device_name()
    assert memory["num_graphs"] >= 4
    assert 0 < memory["graph_bytes"] <= 2 << 30
    used = memory["total_bytes"] - memory["free_bytes"]
    assert memory["weight_bytes"] + memory["kv_cache_bytes"] < used <= 0.65 * memory["total_bytes"]


def test_metrics_count_the_engines_and_the_devices_time(app):
    names = ["ray_bireme_engine_device_seconds_total", "ray_bireme_engine_busy_seconds_total"]
    if DEVICE == "gpu":
        names.append('use="kv_cache"')

    def all_there() -> bool:
        with urllib.request.urlopen(app.url + "/metrics", timeout=10) as reply:
            text = reply.read().decode()
        return all(name in text for name in names)

    wait_for(all_there, 30, f"no {names}")


def num_gpus() -> int:
    return paddle.device.cuda.device_count() if paddle.is_compiled_with_cuda() else 0


@pytest.mark.skipif(DEVICE == "gpu" and num_gpus() < 2, reason="needs two GPUs")
def test_two_replicas_on_two_gpus_share_requests_and_one_continues_what_the_other_began():
    # Each takes more than half of a GPU, so two on one could not start.
    settings = {**SETTINGS, "max_num_seqs": 16, "max_queued_requests": 64, "deployment_config": {"num_replicas": 2}}
    app = ServedApp(CONFIG, log_path("two-replicas"), settings, ENVIRONMENT)
    try:
        wait_for(lambda: len(app.engines()) == 2, 120, "no two engines")

        def both_have_worked() -> bool:
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda n: post(app, body(app, f"{n}", max_tokens=8)), range(8)))
            # What an engine's own warm-up generated is a handful of tokens.
            return all(engine["num_generated_tokens"] >= 12 for engine in app.engines())

        # The ingress learns of the second engine a moment after the first.
        wait_for(both_have_worked, 60, "one engine gets no request")
        engines = app.engines()
        requests = [body(app, f"{n}. {PROMPTS[n % 4]}", max_tokens=LONG) for n in range(16)]
        with ThreadPoolExecutor(len(requests)) as pool:
            undisturbed = list(pool.map(lambda content: stream(app, content), requests))
            before = {e["engine_id"]: e["num_generated_tokens"] for e in app.engines()}
            print(f"tokens by engine: {before}")
            assert all(before[e["engine_id"]] > e["num_generated_tokens"] for e in engines), "one got no request"
            futures = stream_all(pool, app, requests)
            victim, survivor = app.engines()
            os.kill(victim["pid"], signal.SIGKILL)
            killed = time.monotonic()
            answers = [future.result() for future in futures]
            print(f"all streams ended {time.monotonic() - killed:.1f} s after the kill")
        assert answers == undisturbed
        alive = {engine["engine_id"] for engine in app.engines()}
        assert survivor["engine_id"] in alive and victim["engine_id"] not in alive
    finally:
        app.close()
