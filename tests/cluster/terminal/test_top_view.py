"""The view of ``bireme top``: rates, events, and that 60 columns hold it."""

from __future__ import annotations

from io import StringIO
from typing import Any

from rich.cells import cell_len
from rich.console import Console

from cluster.terminal.top_view import TopView


def engine(engine_id: str, tokens: int, state: str = "running") -> dict[str, Any]:
    return {
        "engine_id": f"engine-{engine_id}",
        "state": state,
        "num_requests_running": 16,
        "num_requests_waiting": 240,
        "num_blocks": 100,
        "num_blocks_available": 25,
        "num_generated_tokens": tokens,
    }


def status(*engines: dict[str, Any], events: dict[str, int] | None = None) -> dict[str, Any]:
    target = {"num_met": 90, "num_missed": 10, "recent_share": 0.9}
    load = {
        "num_running": 300,
        "num_held": 2,
        "arrivals_per_s": 12.5,
        "prompt_tokens_per_s": 4000.0,
        "ttft": target,
        "tpot": None,
    }
    return {"engines": list(engines), "ingresses": {"one": {"events": events or {}}}, "load": load}


def seen(view: TopView, found: dict[str, Any], now: float, width: int = 60) -> list[str]:
    out = StringIO()
    Console(file=out, width=width).print(view.show("http://127.0.0.1:8000", found, now, "12:00:00"))
    return out.getvalue().splitlines()


def test_an_ingress_that_was_silent_for_a_look_brings_nothing_that_was_seen():
    def look(now: float, **counts: int) -> str:
        ingresses = {name: {"events": {"bireme_request_attempts": count}} for name, count in counts.items()}
        return "\n".join(seen(view, {**status(), "ingresses": ingresses}, now))

    view = TopView()
    assert "attempts" not in look(1.0, one=3, other=40)
    assert "attempts" not in look(2.0, one=3)
    assert "request_attempts +2" in look(3.0, one=3, other=42)
    again = look(4.0, one=4, other=42, new=9)
    assert again.count("request_attempts") == 2
    assert "request_attempts +1" in again


def test_an_older_server_tells_the_events_of_the_ingress_that_answers():
    view = TopView()
    for now, count in ((1.0, 3), (2.0, 5)):
        found = {**status(), "events": {"bireme_retries": count}}
        del found["ingresses"]
        text = "\n".join(seen(view, found, now))
    assert "retries +2" in text


def test_rates_and_events_are_of_the_time_between_two_looks():
    view = TopView()
    first = seen(view, status(engine("a" * 12, 1000), events={"bireme_retries": 3}), 10.0)
    assert "- tokens/s" in " ".join(first)
    assert not any("retries" in line for line in first)
    silent = {"engine_id": "engine-" + "c" * 12, "state": "silent"}
    second = seen(
        view, status(engine("a" * 12, 1500), engine("b" * 12, 77), silent, events={"bireme_retries": 5}), 12.0
    )
    text = "\n".join(second)
    assert "250 tokens/s" in " ".join(text.split())
    (row,) = [line for line in second if line.startswith("aaaa")]
    assert row.split()[1:5] == ["running", "16", "240", "250"]
    assert "75 %" in row
    assert "12:00:00  retries +2" in text
    assert f"12:00:00  engine-{'b' * 12} new -> running" in text
    assert "first token within target: 90 % lately, 90 of 100" in text
    gone = "\n".join(seen(view, status(engine("b" * 12, 50)), 13.0))
    assert f"engine-{'a' * 12} running -> gone" in gone
    assert "-27" not in gone, "an engine that counts anew has no negative rate"


def test_sixty_columns_hold_every_engine_on_a_line_of_its_own():
    view = TopView()
    found = status(*(engine(f"{i:012x}", 10**9, "dead (ActorDiedError)") for i in range(4)))
    for width in (60, 80):
        lines = seen(view, found, 1.0, width)
        assert max(map(cell_len, lines)) <= width
        assert sum(line.rstrip().endswith("75 %") for line in lines) == 4
