"""Two ingresses before two engines: an answer that began at one goes on at the other as if nothing had happened."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import ray
from ray import serve
from typer.testing import CliRunner

from cluster.client import Client
from cluster.client.api_types import Answer
from cluster.client.errors import ServerError
from cluster.routing.fingerprint import can_continue
from cluster.tenant import nobody_of
from deployments.cli import app as bireme
from deployments.llm import build_openai_app
from deployments.openai_api.answers.event_ids import EventIds
from deployments.ray_private.serve import session_logs
from deployments.replica.engine_replica import RUNNER_NAME_PREFIX
from deployments.start.run_files.cluster_secret import cluster_secret
from deployments.start.run_files.session_logs import MAX_KEPT
from tests.chaos.served.application import MODEL, Setup
from tests.chaos.served.processes import descendants, title_of
from tests.deployments.conftest import App, wait_for
from tests.deployments.openai_api.points import point_of
from tests.deployments.start.run_files.test_session_logs import aged

NAME = "pair"
HARD = {"frequency_penalty": 0.4, "presence_penalty": 0.2, "repetition_penalty": 1.2, "min_tokens": 100}


class Pair:
    """The application under test, beside the one that all tests share."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder

    def client(self, max_resumes: int = 40) -> Client:
        return Client(self.url, timeout=60, max_resumes=max_resumes)

    def ingresses(self) -> list[int]:
        title = f"ray::ServeReplica:{NAME}:OpenAiIngress"
        return [pid for pid in descendants() if title_of(pid).startswith(title)]

    def engines(self) -> dict[str, Any]:
        """Runners that answer, by engine id."""
        found = {}
        for actor in ray.util.list_named_actors(all_namespaces=True):
            prefix = f"{RUNNER_NAME_PREFIX}{NAME}::"
            if actor["name"].startswith(prefix):
                try:
                    runner = ray.get_actor(actor["name"], actor["namespace"])
                    if ray.get(runner.stats.remote(), timeout=2)["state"] == "running":
                        found[actor["name"].removeprefix(prefix)] = runner
                except (ValueError, ray.exceptions.RayError):
                    continue
        return found

    def is_ready(self) -> bool:
        try:
            healthy = all(httpx.get(self.url + "/health", timeout=5).status_code == 200 for _ in range(4))
        except httpx.HTTPError:
            return False
        return healthy and len(self.ingresses()) == 2 and len(self.engines()) == 2


@pytest.fixture(scope="module")
def pair(app: App, tmp_path_factory) -> Iterator[Pair]:
    made = Pair(f"{app.url}/{NAME}", tmp_path_factory.mktemp("pair") / "tiny")
    config = Setup(num_engines=2, num_ingresses=2).config(made.folder, drain_timeout_s=0.2, max_attempts=4)
    serve.run(build_openai_app(config), name=NAME, route_prefix=f"/{NAME}")
    wait_for(made.is_ready, 90, "the application is not ready")
    yield made
    serve.delete(NAME)


def facts(chunks: list[Answer]) -> tuple:
    """All that a client learns of an answer, whatever the boundaries of its events."""
    choices: dict[int, list] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            known = choices.setdefault(choice.index, ["", [], [], None, None])
            known[0] += choice.text
            known[1] += choice.token_ids or []
            known[2] += zip(*[v for v in choice.logprobs.values() if isinstance(v, list)]) if choice.logprobs else []
            known[3], known[4] = choice.finish_reason or known[3], choice.stop_reason or known[4]
    return choices, chunks[-1].usage, chunks[0].seed, chunks[0].fingerprint


def plant_old_logs() -> Path:
    """The oldest of more logs of dead processes than are kept."""
    folder = session_logs()
    assert folder is not None
    return [aged(Path(folder) / f"worker-of-old-{age}.err", 10_000 + age) for age in range(MAX_KEPT + 1)][-1]


class Streaming:
    """One streamed request on its way."""

    def __init__(self, pair: Pair, pool: ThreadPoolExecutor, body: dict, max_resumes: int = 40) -> None:
        self.chunks: list[Answer] = []
        self._pair, self._body, self._max_resumes = pair, body, max_resumes
        self.done: Future = pool.submit(self._run)

    def _run(self) -> list[Answer]:
        with self._pair.client(self._max_resumes) as client:
            for chunk in client.stream_complete(**self._body):
                self.chunks.append(chunk)
        return self.chunks


def begin_until_one_is_on(
    pair: Pair, pool: ThreadPoolExecutor, body: dict, fingerprint: str, num_chunks: int
) -> list[Streaming]:
    """Six streams that have begun, and more until one of those that run is on an engine with ``fingerprint``: which engine gets
    a new answer is up to the router."""
    streams = [Streaming(pair, pool, body) for _ in range(6)]
    deadline = time.monotonic() + 60
    while True:
        wait_for(lambda: all(len(s.chunks) >= num_chunks for s in streams), 30, "the streams did not begin")
        if any(s.chunks[0].fingerprint == fingerprint and not s.done.done() for s in streams):
            return streams
        assert time.monotonic() < deadline, f"no answer begins on {fingerprint}"
        time.sleep(0.5)
        streams.append(Streaming(pair, pool, body))


def stop_across_a_token(client: Client, body: dict) -> str:
    """Text in the middle of the answer of ``body`` that begins in one token and ends in a later one."""
    text = "".join(chunk.text for chunk in client.stream_complete(**body))
    middle = len(text) * 3 // 4
    stop = text[middle : middle + 24]
    assert text.find(stop) == middle, "the answer repeats itself"
    return stop


def kill_one_after_the_other(pair: Pair, streams: list[Streaming]) -> None:
    wait_for(lambda: all(len(s.chunks) > 20 for s in streams), 30, "the streams did not begin")
    for pid in pair.ingresses():
        os.kill(pid, signal.SIGKILL)
        wait_until_they_go_on(streams)


def wait_until_they_go_on(streams: list[Streaming]) -> None:
    """Each brings more than what was on its way from an ingress that was killed."""
    enough = [len(stream.chunks) + 20 for stream in streams]
    wait_for(
        lambda: all(s.done.done() or len(s.chunks) > count for s, count in zip(streams, enough, strict=True)),
        60,
        "the streams do not go on",
    )


@pytest.mark.slow
def test_a_trace_is_found_whichever_ingress_had_the_request(pair: Pair):
    with pair.client() as client:
        ids = [client.complete("Once", max_tokens=2).id for _ in range(6)]
    # The proxy chooses whom each question goes to: of two ingresses one alone had the request.
    for answer_id in ids:
        ways = [httpx.get(f"{pair.url}/v1/traces/{answer_id}", timeout=30) for _ in range(6)]
        assert {way.status_code for way in ways} == {200}, ways[-1].text
        assert len({sequence["request"] for way in ways for sequence in way.json()["sequences"]}) == 1
    found = CliRunner().invoke(bireme, ["trace", ids[0], "--url", pair.url])
    assert (found.exit_code, "the first token" in found.stdout) == (0, True), found.output
    unknown = CliRunner(env={"COLUMNS": "400"}).invoke(bireme, ["trace", "cmpl-none", "--url", pair.url])
    assert unknown.exit_code == 1
    assert unknown.stderr.startswith("Error: no ingress knows request")
    assert "did not answer" not in unknown.stderr
    with stopped(pair.ingresses()[0]):
        wait_for(
            lambda: "(1 of 2 did not answer)" in why_there_is_no_trace(pair.url), 20, "a stopped ingress is not counted"
        )


@pytest.mark.slow
def test_each_ingress_tells_what_happened_in_both(pair: Pair):
    def look() -> dict:
        """Empty where the question came to an ingress that is stopped."""
        with contextlib.suppress(httpx.TimeoutException):
            return httpx.get(f"{pair.url}/v1/status", timeout=4).json()
        return {}

    looks = [look() for _ in range(6)]
    assert len({tuple(sorted(found["ingresses"])) for found in looks}) == 1
    assert {(len(found["ingresses"]), found["silent_ingresses"]) for found in looks} == {(2, 0)}
    assert len({next(iter(found["ingresses"])) for found in looks}) == 2, "one ingress answered all"
    with stopped(pair.ingresses()[0]):
        wait_for(lambda: look().get("silent_ingresses") == 1, 20, "a stopped ingress is not counted")
        told = CliRunner().invoke(bireme, ["status", "--url", pair.url]).stdout
    assert "1 of 2 ingresses did not say what they counted" in told


def test_who_has_lost_the_way_below_a_prefix_is_sent_to_a_page_that_is_there(pair: Pair):
    lost = httpx.get(f"{pair.url}/nothing", timeout=30)
    assert (lost.status_code, lost.json()["error"]["message"]) == (
        404,
        f"there is no /{NAME}/nothing; /{NAME}/docs shows what there is",
    )
    page = httpx.get(f"{pair.url}/docs", timeout=30)
    assert page.status_code == 200
    assert f"/{NAME}/v1/chat/completions" in page.text


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def why_there_is_no_trace(url: str) -> str:
    """Empty where the question came to an ingress that is stopped."""
    with contextlib.suppress(httpx.TimeoutException):
        return httpx.get(f"{url}/v1/traces/cmpl-none", timeout=4).text
    return ""


@pytest.mark.slow
def test_answers_of_killed_ingresses_are_those_of_a_life_without_deaths(pair: Pair):
    plain = {"max_tokens": 500, "ignore_eos": True, "stream_options": {"include_usage": True}}
    with pair.client() as client:
        stop = stop_across_a_token(client, {**plain, "prompt": "Once", "seed": 3})
    bodies = [
        {**plain, "prompt": "Unseeded", "temperature": 1.0},
        {**plain, "prompt": "Several", "n": 3, "seed": 8, "logprobs": 2},
        {**plain, "prompt": "Once", "seed": 3, "stop": [stop, "never this"]},
        {**plain, "prompt": ["Penalties", "of two"], "seed": 4, "temperature": 0.9, **HARD},
        {**plain, "prompt": "Greedy", "temperature": 0, "logprobs": 0, "min_tokens": 300, "stop": [" "]},
    ]
    whole = {**plain, "prompt": "Whole", "seed": 6, "n": 2, "logprobs": 1}
    oldest_log = plant_old_logs()
    del whole["stream_options"]
    with ThreadPoolExecutor(8) as pool:
        streams = [Streaming(pair, pool, body) for body in bodies]
        with pair.client() as client:
            answer = pool.submit(client.complete, **whole)
            kill_one_after_the_other(pair, streams)
            survived = [facts(stream.done.result(timeout=120)) for stream in streams]
            raw = answer.result(timeout=120).raw
    wait_for(pair.is_ready, 60, "the ingresses did not come back")
    wait_for(lambda: not oldest_log.exists(), 30, "new ingresses have left all logs of the dead")
    with pair.client() as client:
        for body, found in zip(bodies, survived, strict=True):
            # The seed that the first event told is what repeats an answer.
            assert found == facts(list(client.stream_complete(**{**body, "seed": found[2]}))), body
        undisturbed = client.complete(**whole).raw
    assert raw["choices"] == undisturbed["choices"]
    assert survived[2][0][0][3:] == ["stop", stop]
    assert any(found.counts.get("bireme_client_resumes") for found in events())


class Events(NamedTuple):
    """What one ingress counted (``deployments.metrics.request_events``)."""

    counts: dict[str, int]
    recoveries: dict[str, float]


def events() -> list[Events]:
    """What happened to requests in each of the two ingresses."""

    def ask() -> list[Events]:
        found = []
        for actor in ray.util.list_named_actors(all_namespaces=True):
            if actor["name"].startswith(f"SERVE_REPLICA::{NAME}#OpenAiIngress"):
                with contextlib.suppress(ValueError, ray.exceptions.RayError):
                    replica = ray.get_actor(actor["name"], namespace=actor["namespace"])
                    found.append(Events(*ray.get(replica.__ray_call__.remote(_events), timeout=5)))
        return found

    return wait_for(lambda: len(found := ask()) == 2 and found, 30, "two ingresses do not answer")


def _events(replica: Any) -> tuple[dict[str, int], dict[str, float]]:
    events = replica._replica_impl._user_callable_wrapper._callable._client.events
    return dict(events.counts), dict(events.recoveries)


@pytest.mark.slow
def test_an_engine_that_leaves_is_seen_to_and_its_answers_go_on(pair: Pair):
    body = {"prompt": "Leaving", "max_tokens": 900, "ignore_eos": True, "seed": 2}
    with pair.client() as client:
        undisturbed = client.complete(**body, return_token_ids=True).choices[0].token_ids
    with ThreadPoolExecutor(8) as pool:
        streams = [Streaming(pair, pool, body) for _ in range(6)]
        wait_for(lambda: all(s.chunks for s in streams), 30, "the streams did not begin")
        leaving, runner = next(iter(pair.engines().items()))
        assert ray.get(runner.drain.remote(0.05)) > 0
        for stream in streams:
            assert facts(stream.done.result(timeout=120))[0][0][1] == undisturbed
    seen = events()
    assert [found.counts["bireme_drained_engines"] for found in seen] == [1, 1]
    for found in seen:
        moved = found.counts.get("bireme_request_handovers", 0)
        assert found.recoveries["count"] == moved
        assert (found.recoveries["longest_s"] > 0) == (moved > 0)
    assert any(found.recoveries["count"] for found in seen)
    with pair.client() as client:
        assert {engine["engine_id"]: engine["state"] for engine in client.status()["engines"]}[leaving] == "draining"
    counters = {"drained_engines_total", "request_handovers_total", "recovery_seconds_count"}

    def are_exported() -> bool:
        text = httpx.get(f"{pair.url}/metrics", timeout=30).text
        return all(f"\nray_bireme_{name}{{" in text for name in counters)

    wait_for(are_exported, 40, f"{counters} are not all in the metrics")
    oldest_log = plant_old_logs()
    ray.kill(runner)
    wait_for(lambda: leaving not in pair.engines() and pair.is_ready(), 90, "the engine did not come back")
    wait_for(lambda: not oldest_log.exists(), 30, "the new engine has left all logs of the dead")


@pytest.mark.slow
def test_only_an_engine_with_the_same_fingerprint_continues_an_answer(pair: Pair):
    body = {"prompt": "Long", "max_tokens": 900, "ignore_eos": True, "seed": 12, "return_token_ids": True}
    with pair.client() as client:
        undisturbed = client.complete(**body)
        old = undisturbed.fingerprint
        # The model on the disk changes, and an engine is replaced: as in an update that is half done.
        (pair.folder / "config.json").write_text(json.dumps({**MODEL, "rope_theta": 20000.0}))
        victim, runner = next(iter(pair.engines().items()))
        ray.kill(runner)
        wait_for(lambda: victim not in pair.engines() and pair.is_ready(), 90, "the engine did not come back")
        seen: set = set()
        wait_for(lambda: seen.add(client.complete("x", max_tokens=1).fingerprint) or len(seen) == 2, 30, "one kind")
    with ThreadPoolExecutor(40) as pool:
        # Busy with the answers of two ingresses, the old engine still gets them back; the new one is idle and does not.
        streams = begin_until_one_is_on(pair, pool, body, old, num_chunks=1)
        mine = [s for s in streams if s.chunks[0].fingerprint == old]
        kill_one_after_the_other(pair, mine)
        for stream in mine:
            choices = facts(stream.done.result(timeout=120))[0]
            assert choices[0][1] == undisturbed.choices[0].token_ids
        for stream in streams:
            stream.done.result(timeout=120)
    wait_for(pair.is_ready, 60, "the ingresses did not come back")
    _the_last_engine_of_its_kind_dies(pair, body, old)


def _the_last_engine_of_its_kind_dies(pair: Pair, body: dict, old: str) -> None:
    with ThreadPoolExecutor(40) as pool:
        streams = begin_until_one_is_on(pair, pool, body, old, num_chunks=4)
        mine = [s for s in streams if s.chunks[0].fingerprint == old and not s.done.done()]
        for runner in pair.engines().values():
            if can_continue(ray.get(runner.stats.remote())["fingerprint"], old):
                ray.kill(runner)
        for stream in mine:
            with pytest.raises(ServerError, match=old) as caught:
                stream.done.result(timeout=120)
            assert caught.value.code == "fingerprint_mismatch"
        for stream in set(streams) - set(mine):
            stream.done.result(timeout=120)
    # And so does a client that comes back with what it has: before anything was sent, the status says so.
    wait_for(pair.is_ready, 90, "the engine did not come back")
    token_ids = [token for chunk in mine[0].chunks for token in chunk.choices[0].token_ids or []]
    body = {**body, "stream": True, "resume": {"fingerprint": old, "choices": [{"token_ids": token_ids}]}}
    anybody = nobody_of(cluster_secret(NAME))
    point = point_of(body, [mine[0].chunks[0].raw["choices"][0]["prompt_token_ids"]], anybody)
    response = httpx.post(
        f"{pair.url}/v1/completions",
        json=body,
        headers={"Last-Event-ID": EventIds(anybody.event_key).sign(point)},
        timeout=60,
    )
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (503, "fingerprint_mismatch")
    assert set(error) == {"message", "type", "param", "code"}
    assert old in error["message"]
