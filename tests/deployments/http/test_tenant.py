"""What engines learn of an API key: a name and a salt, and nothing of the key."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.block_hash import hash_blocks
from cluster.config import LLMConfig
from cluster.tenant import NOBODY, own_secret, tenant_of
from deployments.http.keys import ApiKeys, key_digest
from deployments.llm import build_openai_app
from tests.deployments.ingress_without_ray import Connection, application
from tests.deployments.played_engines import Engines

SECRET = b"s" * 32
KEYS = ["first-key", "second-key"]


def bearer(key: str) -> str:
    return f"Bearer {key}"


@settings(deadline=None)
@given(st.lists(st.tuples(st.text(min_size=1, max_size=8), st.text(max_size=8)), unique=True, max_size=20))
def test_no_two_pairs_of_key_and_salt_share_prefixes(pairs):
    """However the two are cut: "ab" with "c" is not "a" with "bc"."""
    salts = [tenant_of(key_digest(key), SECRET, True, False).cache_salt(salt) for key, salt in pairs]
    assert len({hash_blocks([1] * 16, 16, salt)[0] for salt in salts}) == len(pairs)


def test_every_ingress_with_the_secret_derives_the_same_and_nobody_else_does():
    here, there = (ApiKeys(KEYS, secret=lambda: SECRET).check(bearer(KEYS[0])) for _ in range(2))
    assert here == there and here.cache_salt("x") == there.cache_salt("x")
    elsewhere = ApiKeys(KEYS, secret=own_secret).check(bearer(KEYS[0]))
    assert {elsewhere.id, elsewhere.cache_salt("x")}.isdisjoint({here.id, here.cache_salt("x")})
    second = ApiKeys(KEYS, secret=lambda: SECRET).check(bearer(KEYS[1]))
    assert {second.id, second.cache_salt("x")}.isdisjoint({here.id, here.cache_salt("x")})


def test_without_keys_and_with_a_shared_cache_the_clients_salt_is_the_salt():
    assert ApiKeys([]).check(None)._replace(event_key=b"") == NOBODY._replace(event_key=b"")
    assert NOBODY.cache_salt("") == "" and NOBODY.cache_salt("mine") == "mine"
    shared = ApiKeys(KEYS, secret=lambda: SECRET, share_prefix_cache=True).check(bearer(KEYS[0]))
    assert shared.id and shared.cache_salt("mine") == "mine"


def test_one_key_alone_takes_no_turns():
    for keys in (["only"], ["only", "only"]):
        alone = ApiKeys(keys, secret=lambda: SECRET).check(bearer("only"))
        assert alone.id == "" and alone.cache_salt("")


class Recorded(Engines):
    """Engines that keep what they are asked for."""

    def __init__(self) -> None:
        super().__init__([0])
        self.requests: list = []

    def submit(self, entry, deliver, fail):
        self.requests.append(entry.engine_request())
        return super().submit(entry, deliver, fail)


async def ask(engines: Engines, keys: ApiKeys, key: str | None, body: dict) -> None:
    connection = Connection("/v1/completions", {"prompt": "x", "max_tokens": 1, **body})
    if key is not None:
        connection.scope["headers"].append((b"authorization", bearer(key).encode()))
    await application(engines, keys)(connection.scope, connection.receive, connection.send)
    assert connection.events[0]["status"] == 200


async def test_requests_of_two_keys_reach_engines_with_names_and_salts_of_their_own():
    engines, keys = Recorded(), ApiKeys(KEYS, secret=lambda: SECRET)
    for key in KEYS:
        for salt in ("", "mine"):
            await ask(engines, keys, key, {"cache_salt": salt})
    tenants = [request.tenant for request in engines.requests]
    assert tenants[0] == tenants[1] != tenants[2] == tenants[3]
    assert len({request.cache_salt for request in engines.requests}) == 4
    for request in engines.requests:
        assert not any(key in repr(request) for key in KEYS)


async def test_requests_of_many_keys_at_once_are_not_mixed_up():
    engines, keys = Recorded(), ApiKeys(KEYS, secret=lambda: SECRET)
    await asyncio.gather(*(ask(engines, keys, KEYS[i % 2], {"max_tokens": 1 + i}) for i in range(20)))
    for request in engines.requests:
        assert request.tenant == keys.check(bearer(KEYS[(request.params.max_tokens - 1) % 2])).id


@pytest.mark.parametrize(
    "keys", [ApiKeys([]), ApiKeys(KEYS, secret=lambda: SECRET, share_prefix_cache=True)], ids=["open", "shared"]
)
async def test_salts_stay_as_they_were_where_all_may_share(keys):
    engines = Recorded()
    await ask(engines, keys, KEYS[0], {"cache_salt": "mine"})
    await ask(engines, keys, KEYS[0], {})
    assert [request.cache_salt for request in engines.requests] == ["mine", ""]


def test_engine_replicas_are_not_told_the_keys():
    ingress = build_openai_app(LLMConfig(device="cpu", api_keys=KEYS))._bound_deployment
    _, engines, digests, *others = ingress.init_args
    assert digests == tuple(map(key_digest, KEYS))
    engine_arguments = engines._bound_deployment.init_args
    assert not any(key in json.dumps(repr((engine_arguments, others))) for key in KEYS)
