"""A short scenario for every run of the tests; ``make chaos`` is the long one."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.chaos.faults.injection import Moment
from tests.chaos.faults.kinds import (
    START_STAGES,
    FillObjectStore,
    KillProcess,
    KillStarting,
    ScaleEngines,
    StallClients,
    StopProcess,
    VanishClients,
    draw_faults,
)
from tests.chaos.load.clients import Load
from tests.chaos.load.openai_streams import OPENAI, OPENAI_WITH_IDS
from tests.chaos.load.requests import NUM_REQUESTS, cut_at, has_stops, stop_string
from tests.chaos.load.seen import Seen, SeenCall, SeenChoice, Twin
from tests.chaos.report import Report
from tests.chaos.scenario import ingress_leaks, judge, recoveries, run_scenario
from tests.chaos.served.application import Setup, application
from tests.chaos.served.ingresses import Open

# One of each that matters, in an order that leaves a warm engine for each next one.
# Plain kills of runners, engines, ingresses and HAProxies, and that they cost nobody anything: test_soak.py.
SHORT = [
    StallClients(0.1, 0.0, count=2, stalled_s=1.0),
    StopProcess(0.3, 0.9, "runner", "decode", stopped_s=5.0),
    VanishClients(0.1, 0.0, "sent", count=2),
    FillObjectStore(0.1, 0.0, held_s=0.5),
    KillProcess(0.1, 0.5, "controller"),
    KillProcess(0.3, 0.5, "runner", "handover"),
    KillProcess(0.3, 0.5, "runner", "ahead"),
    KillProcess(0.1, 0.5, "proxy", "decode"),
    KillProcess(0.3, 0.5, "engine", "saving"),
    ScaleEngines(0.1, 0.0, by=1),
    KillStarting(0.1, 0.5, "weights"),
    KillProcess(0.1, 0.5, "ingress", "move"),
    KillProcess(0.1, 0.5, "runner", "reserve"),
    ScaleEngines(0.1, 0.0, by=-1),
]


def test_a_seed_draws_the_same_faults_again():
    assert draw_faults(7, 20) == draw_faults(7, 20) != draw_faults(8, 20)
    assert draw_faults(7, 30)[:20] == draw_faults(7, 20)


def test_every_kind_of_process_and_phase_is_drawn():
    labels = {fault.label.split(" for ")[0] for seed in range(20) for fault in draw_faults(seed, 50, nodes=True)}
    for phase in ("", " in ahead", " in queued", " in prefill", " in decode", " in saving", " in handover"):
        assert f"kill runner{phase}" in labels
        assert f"stop runner{phase}" in labels
        assert f"kill engine{phase}" in labels
    for kind in ("engine", "ingress", "proxy", "controller"):
        assert {f"kill {kind}", f"stop {kind}"} <= labels
    assert {"remove node", "node silent", "object store full", "clients vanish", "clients stall"} <= labels
    scaled = {fault.label for seed in range(20) for fault in draw_faults(seed, 50, scales=True)}
    assert {"scale up", "scale down", "kill runner in reserve", "kill runner in move", "kill ingress in move"} <= scaled
    assert {f"kill starting engine in {stage}" for stage in START_STAGES} <= scaled


def test_reports_are_summed_and_survive_json():
    one = Report([1], recovery_s={"kill runner in decode": [0.5], "kill runner (another fault meanwhile)": [3.0]})
    one.faults["kill runner in decode"] += 2
    two = Report([2], lost=["request 3"])
    two.faults["kill runner"] += 1
    assert (one.exit_code, one.late) == (0, {})
    total = Report.total([Report.from_json(one.to_json()), two])
    assert total.seeds == [1, 2]
    assert total.exit_code == 1
    assert "| kill runner | 3 | 1 | 0.50 s | 0.50 s | 0.50 s | 3.00 s |" in total.table()


def test_what_took_longer_than_it_should_is_told_apart_by_what_happened():
    kill, stop = KillProcess(0.0, 0.0, "runner"), StopProcess(0.0, 0.0, "engine")
    moments = [Moment(kill, 100.0), Moment(kill, 200.0), Moment(stop, 201.0), Moment(stop, 300.0)]
    seen = [
        Seen(0, "resuming", [98.0, 99.9, 102.2, 103.5, 110.0]),  # late; its last wait is no fault's
        Seen(1, "resuming", [99.0, 99.9, 101.9, 103.0]),
        Seen(2, "resuming", [190.0, 199.9, 205.8, 206.0]),  # killed and stopped: six seconds are allowed
        Seen(3, "resuming", [199.0, 199.9, 206.3, 207.0]),
        Seen(4, "resuming", [299.0, 299.9, 303.9]),
        Seen(5, "plain", [299.0, 299.9, 309.9]),
        Seen(6, "resuming", [199.0, 199.9, 200.3, 201.1, 204.3, 207.0]),  # a chunk came while the second fault began
    ]
    report = Report([1])
    recoveries(report, seen, moments)
    late = {label: [round(one, 1) for one in seconds] for label, seconds in report.late.items()}
    assert late == {"kill runner": [2.2], "kill runner (another fault meanwhile)": [6.3]}
    assert (report.is_clean, report.exit_code) == (True, 2)
    assert "LATE kill runner: 2.20 s" in str(report)


def test_every_choice_is_judged_by_tokens_text_reason_and_log_probabilities():
    call = SeenCall("note", '{"a": 1}', 1)
    whole = SeenChoice([5, 6, 7], "abc", "stop", "c", [-1.0, -2.0, -3.0], "hm", {0: call})
    twin: Twin = ([SeenChoice([1], "x", "length"), whole], (3, 4))
    began = SeenChoice([5, 6], "ab", None, None, [-1.0, -2.0], "hm", {0: replace(call, arguments='{"a')})
    wrong = [
        replace(whole, token_ids=[5, 6, 8]),
        replace(whole, token_ids=[5, 6, 7, 7]),
        replace(whole, text="abd"),
        replace(whole, logprobs=[-1.0, -2.0, -3.5]),
        replace(whole, finish_reason="length"),
        replace(whole, stop_reason=None),
        replace(whole, reasoning="hmm"),
        replace(whole, calls={}),
        replace(whole, calls={0: replace(call, name="notenote")}),
        replace(whole, calls={0: call, 1: call}),
        began,
    ]
    load = Load("", 0, 0, 0)
    load.seen = [Seen(0, "resuming", [0.0], {0: twin[0][0], 1: choice}, (3, 4)) for choice in [*wrong, whole]]
    of_another_id = replace(began, calls={0: replace(call, num_ids=2)})
    load.seen += [Seen(0, "vanishing", [0.0], {1: choice}) for choice in (began, wrong[0], of_another_id)]
    load.seen.append(Seen(0, "resuming", [0.0], {1: whole}, (3, 4)))
    report = Report([1])
    judge(report, load, {0: twin})
    assert (len(report.changed), report.lost) == (len(wrong) + 3, [])


def test_a_client_may_see_a_break_before_the_process_that_hit_itself_is_seen_dead():
    load = Load("", 0, 0, 0)
    load.seen = [
        Seen(0, "openai", [99.0, 100.1], {0: SeenChoice([1])}, error="Connection error.", is_break=True, ended=ended)
        for ended in (99.9, 100.2)
    ]
    moments = [Moment(KillProcess(0.0, 0.0, "ingress", "move"), 100.5, aimed=100.0)]
    report = Report([1])
    judge(report, load, {0: ([SeenChoice([1, 2])], None)}, [one.when for one in moments])
    assert (report.honest, len(report.lost)) == (1, 1)


def test_a_stop_string_ends_late_where_it_comes_for_the_first_time():
    text = "".join(chr(97 + i % 7) for i in range(60)) + "xyz" * 20
    for number in filter(has_stops, range(NUM_REQUESTS)):
        stop = stop_string(number, text)
        assert 30 < text.find(stop) + len(stop) <= 90
        assert cut_at(text, stop, True) == cut_at(text, stop, False) + stop


def test_what_an_ingress_keeps_is_a_leak():
    well = Open([], 0, {"a", "b"})
    assert ingress_leaks({1: well, 2: well}, 2, {"a", "b"}) == []
    assert len(ingress_leaks({1: Open([5], 1, {"a", "b"}), 2: Open([], 1, {"b", "dead"})}, 3, {"a", "b"})) == 4


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_no_request_is_lost_or_changed_by_dying_and_hanging_processes(tmp_path, capsys):
    # The other scenarios have the default policy. More sequences than slots: requests move when an engine comes.
    setup = Setup(num_engines=3, num_clients=8, max_num_seqs=3, routing_policy="least_tokens")
    with application(setup, tmp_path / "tiny") as running:
        report = asyncio.run(run_scenario(running, setup, SHORT, seed=1))
    with capsys.disabled():
        print(f"\n{report}")
    assert sum(report.faults.values()) == len(SHORT), report.missed
    assert (report.lost, report.changed, report.leaks) == ([], [], [])
    assert report.ended["resuming"] > 0
    assert report.moves > 0
    assert report.ended[OPENAI] + report.ended[OPENAI_WITH_IDS] > 0
