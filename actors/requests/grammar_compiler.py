"""Grammars of requests, compiled beside the engine's thread before it is given the requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from cluster.request import EngineRequest, RequestKey


class GrammarCompiler:
    """Compiles one after the other. Belongs to one event loop.

    Args:
        compile_grammar: as ``Engine.compile_grammar``.
        get_ready: as ``Engine.get_ready_for_grammars``.
    """

    def __init__(self, compile_grammar: Callable[[EngineRequest], object], get_ready: Callable[[], None]) -> None:
        self._compile_grammar = compile_grammar
        self._get_ready = get_ready
        # Of its own and only one: who sends grammars that take long waits for others who do, and nobody else does.
        self._thread = ThreadPoolExecutor(1, "grammars")
        # Of each request whose grammar is awaited, resolved if it is aborted.
        self._aborted: dict[RequestKey, asyncio.Future[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._aborted)

    def compile(
        self,
        request: EngineRequest,
        compiled: Callable[[object], None],
        aborted: Callable[[], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        """Compile the grammar of ``request``; later, one of the three is called on the loop.

        Args:
            compiled: told what to hold until the request has ended, so that its grammar stays compiled.
            aborted: ``abort`` came before that.
            failed: told why not: InvalidRequestError if the grammar is not valid or beyond the limits; and what ``compiled``
                raised.
        """
        loop = asyncio.get_running_loop()
        self._aborted[request.request_id, request.attempt] = loop.create_future()
        task = loop.create_task(self._compile_and_tell(request, compiled, aborted, failed))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def abort(self, key: RequestKey) -> bool:
        """Wait for a request's grammar no more; whether it was awaited."""
        aborted = self._aborted.get(key)
        if aborted is None:
            return False
        if not aborted.done():
            aborted.set_result(None)
        return True

    async def get_ready(self) -> None:
        """Load what a first grammar needs."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._get_ready)

    async def _compile_and_tell(
        self,
        request: EngineRequest,
        compiled: Callable[[object], None],
        aborted: Callable[[], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        try:
            compiling = await self._compile(request)
            if compiling is None:
                aborted()
            else:
                compiled(compiling.result())
        except Exception as error:
            failed(error)

    async def _compile(self, request: EngineRequest) -> asyncio.Future[object] | None:
        """The compilation, which is over; None if ``abort`` came before that."""
        key = request.request_id, request.attempt
        is_aborted = self._aborted[key]
        try:
            compiling = asyncio.get_running_loop().run_in_executor(self._thread, self._compile_grammar, request)
            try:
                await asyncio.wait((compiling, is_aborted), return_when=asyncio.FIRST_COMPLETED)
            finally:
                compiling.cancel()  # what is over stays, what runs goes on, what waits is not wanted any more
        finally:
            # Who aborts it from here on finds it where ``compiled`` has put it.
            del self._aborted[key]
        return None if is_aborted.done() else compiling
