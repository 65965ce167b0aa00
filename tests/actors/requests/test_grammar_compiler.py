"""One grammar at a time, beside the event loop; each request hears of one outcome."""

from __future__ import annotations

import asyncio
import threading

import pytest

from actors.requests.grammar_compiler import GrammarCompiler
from cluster.errors import InvalidRequestError
from cluster.request import EngineRequest
from cluster.sampling_params import SamplingParams
from tests.waiting import until


class Compiling:
    """A compiler that stands still until ``go_on``, and the outcomes of requests by their names."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.begun: list[str] = []
        self.outcomes: dict[str, list] = {}
        self.compiler = GrammarCompiler(self._compile, lambda: self.begun.append("ready"))

    def _compile(self, request: EngineRequest) -> str:
        self.begun.append(request.request_id)
        assert threading.current_thread().name.startswith("grammars")
        self.go_on.wait(20)
        if request.request_id == "bad":
            raise InvalidRequestError("not valid", "grammar")
        return request.request_id.upper()

    def compile(self, name: str, attempt: int = 0) -> None:
        said = self.outcomes.setdefault(name, [])
        made = EngineRequest(name, [1], SamplingParams(), attempt=attempt)
        self.compiler.compile(made, said.append, lambda: said.append("aborted"), lambda error: said.append(type(error)))


@pytest.fixture
def compiling():
    made = Compiling()
    yield made
    made.go_on.set()


async def test_each_request_hears_of_its_grammar_or_why_there_is_none(compiling):
    for name in ("one", "bad", "two"):
        compiling.compile(name)
    assert len(compiling.compiler) == 3
    ready = asyncio.create_task(compiling.compiler.get_ready())
    await until(lambda: compiling.begun, 5)
    await asyncio.sleep(0.02)
    assert compiling.begun == ["one"], "one at a time"
    compiling.go_on.set()
    await until(lambda: not len(compiling.compiler), 5)
    assert compiling.outcomes == {"one": ["ONE"], "bad": [InvalidRequestError], "two": ["TWO"]}
    await ready
    assert compiling.begun == ["one", "bad", "two", "ready"]


async def test_an_abort_is_heard_at_once_and_what_waits_is_not_compiled_any_more(compiling):
    for name in ("runs", "waits", "stays"):
        compiling.compile(name)
    compiling.compile("in the same breath")
    assert compiling.compiler.abort(("in the same breath", 0))
    await until(lambda: compiling.begun, 5)
    for name in ("runs", "waits"):
        assert compiling.compiler.abort((name, 0)) and compiling.compiler.abort((name, 0))
    assert not compiling.compiler.abort(("unknown", 0)) and not compiling.compiler.abort(("stays", 1))
    await until(lambda: len(compiling.compiler) == 1, 5)
    compiling.go_on.set()
    await until(lambda: compiling.outcomes["stays"], 5)
    assert compiling.outcomes == {
        **{name: ["aborted"] for name in ("runs", "waits", "in the same breath")},
        "stays": ["STAYS"],
    }
    assert compiling.begun == ["runs", "stays"]
    assert not compiling.compiler.abort(("stays", 0))


async def test_what_follows_a_grammar_and_fails_is_told_to_its_request(compiling):
    failed: list[BaseException] = []
    made = EngineRequest("one", [1], SamplingParams())
    compiling.go_on.set()
    compiling.compiler.compile(made, lambda grammar: 1 / 0, lambda: None, failed.append)
    await until(lambda: failed, 5)
    assert isinstance(failed[0], ZeroDivisionError) and not len(compiling.compiler)
