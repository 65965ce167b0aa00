"""Streams whose engine says nothing for a while, through the official client of OpenAI."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cluster.config import DEFAULT_MODEL
from tests.deployments.conftest import App, wait_for
from tests.served_device import lasting

# Longer than two signs of life are apart, and shorter than the silence of an engine that hangs.
_PAUSE_S = 2.2
_ASKS_FOR_IDS = {"Bireme-Resumable": "1"}


@pytest.mark.parametrize("endpoint", ["chat", "completion"])
def test_the_openai_client_survives_a_stream_that_pauses(app: App, endpoint):
    """Without and with ids, which it remembers: a blank line behind one is an event to it."""
    options = {
        "max_tokens": lasting(60),
        "temperature": 0,
        "extra_body": {"ignore_eos": True, "return_token_ids": True},
    }
    arrived, lock = [0, 0, 0], threading.Lock()

    def ask(number: int, **more: Any) -> str:
        client = app.openai()
        request = {"model": DEFAULT_MODEL, **options, "stream": True, **more}
        if endpoint == "chat":
            stream = client.chat.completions.create(messages=[{"role": "user", "content": "Count."}], **request)
        else:
            stream = client.completions.create(prompt="Count:", **request)
        text, ends = "", []
        for chunk in stream:
            choice = chunk.choices[0]
            text += (choice.delta.content if endpoint == "chat" else choice.text) or ""
            ends += [choice.finish_reason] if choice.finish_reason else []
            with lock:
                arrived[number] += 1
        assert ends == ["length"]
        return text

    undisturbed = ask(0)
    arrived[:] = [0, 0, 0]
    runner = app.stats()["pid"]
    with ThreadPoolExecutor(3) as pool:
        kinds: list[dict[str, Any]] = [{}, {"extra_headers": _ASKS_FOR_IDS}, {"extra_body": {"ignore_eos": True}}]
        asked = [pool.submit(ask, number, **kind) for number, kind in enumerate(kinds)]
        wait_for(lambda: all(count > 4 for count in arrived), 20, "the streams did not start")
        os.kill(runner, signal.SIGSTOP)
        try:
            stopped = list(arrived)
            time.sleep(_PAUSE_S)
        finally:
            os.kill(runner, signal.SIGCONT)
        assert [future.result(timeout=60) for future in asked] == [undisturbed] * 3
    # A few that were under way arrived; most of the answer came behind the pause.
    assert all(before < after - 10 for before, after in zip(stopped, arrived))
    assert app.wait_until_idle()["pid"] == runner, "the engine was paused, not lost"
