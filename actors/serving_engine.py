"""An engine that has started, with the parts that serve it, each of which owns one thing: see the attributes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from actors.engine_load import EngineLoads
from actors.engine_news import EngineNews
from actors.engine_watch import EngineWatch
from actors.handover import Handover
from actors.paced_call import PacedCall
from actors.request_intake import RequestIntake
from actors.requests.arrivals import Arrivals
from actors.requests.grammar_compiler import GrammarCompiler
from actors.requests.live_requests import LiveRequests
from actors.subscriptions import Subscriptions
from cluster.config import EngineConfig
from cluster.errors import EngineDeadError
from cluster.outputs import StepOutput

if TYPE_CHECKING:
    from actors.engine.engine import Engine
    from actors.engine.loop import EngineLoop

# Not more often the books are kept and subscribers told what the engine takes because requests begin and end there: steps of a
# millisecond have such news in each of them, and the engine's thread waits for the interpreter while it is told.
_KEEP_UP_EACH_S = 0.01


class NewLoop(Protocol):
    """``EngineLoop``, or what stands for it in a test."""

    def __call__(
        self,
        engine: Engine,
        publish: Callable[[StepOutput], None],
        on_death: Callable[[BaseException], None],
        on_queue: Callable[[], None],
    ) -> EngineLoop: ...


class ServingEngine:
    """Made on the actor's loop, to which it belongs.

    Args:
        config: settings of the engine.
        engine: has loaded its model. No other thread than its own may touch it from now on.
        new_loop: starts that thread.
        stage_ended: told of the stages of the start that end while it serves, again and again.
        died: told once when nothing more comes of it.

    Attributes:
        engine: for its own thread alone.
        info: of the engine.
        engine_loop: the engine's thread.
        live: requests that are here, and what was said of them.
        arrivals: those on their way to the thread.
        subscriptions: who hears what is said.
        compiler: of grammars.
        handover: requests that leave, and places for those that come from elsewhere.
        requests: how they come, and how who sent them ends them.
        loads: what the engine takes.
        news: keeps the books, and tells subscribers.
        watch: over the thread.
    """

    def __init__(
        self,
        config: EngineConfig,
        engine: Engine,
        new_loop: NewLoop,
        stage_ended: Callable[[str], None] = lambda stage: None,
        died: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_loop = asyncio.get_running_loop().call_soon_threadsafe
        self._died = died
        self.engine = engine
        self.info = info = engine.info
        self.live, self.arrivals = LiveRequests(), Arrivals()
        # Whoever asks before ``news`` is there, from the engine's thread, is heard when this constructor has left the loop.
        keeping_up = PacedCall(lambda: self.news.keep_up(), _KEEP_UP_EACH_S, self._on_loop)
        self.subscriptions = Subscriptions(self.live.subscriber, keeping_up.ask, self._on_loop)
        self.engine_loop = new_loop(engine, self.subscriptions.publish, self._on_death, keeping_up.ask)
        self.watch = EngineWatch(info.engine_id, self.engine_loop, config.hang_timeout_s)
        self.handover = Handover(info.engine_id, self.engine_loop, self.live, self.subscriptions)
        self.compiler = GrammarCompiler(engine.compile_grammar, engine.get_ready_for_grammars)
        self.requests = RequestIntake(
            info,
            self.engine_loop,
            self.live,
            self.arrivals,
            self.compiler,
            self.handover,
            self.subscriptions,
            keeping_up,
        )
        self.loads = EngineLoads(
            config,
            self.engine_loop,
            self.live,
            self.arrivals,
            lambda: self.handover.is_draining,
            lambda: engine.is_ready_for_grammars,
        )
        self.news = EngineNews(
            self.subscriptions,
            self.live,
            self.arrivals,
            self.loads,
            self.watch.is_well,
            lambda: self.handover.is_draining,
            self.engine_loop.take_queue_time,
            stage_ended,
            self.requests.abort_all_of,
        )
        # The first steps after loading were the warm-up's; they ended before the watch begins.
        self.watch.begin(self._tick, self.fail)

    def fail(self, error: BaseException) -> None:
        """Nothing more comes of the engine: whoever waits for it goes elsewhere."""
        self.news.read()
        self.live.fail_all(EngineDeadError(f"the engine died: {error!r}"))
        self.subscriptions.end_all()
        self._died()

    async def close(self) -> None:
        """End streams and the thread."""
        self.watch.close()
        self.requests.ahead.close()
        self.subscriptions.end_all()
        await asyncio.get_running_loop().run_in_executor(None, self.engine_loop.close)

    def _tick(self) -> None:
        self.news.end_leases()
        self.live.drop_old()
        self.requests.ahead.give_up_old()

    def _on_death(self, error: BaseException) -> None:
        # On the engine's thread.
        self._on_loop(self.fail, error)
