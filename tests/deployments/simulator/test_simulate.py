"""Recorded load under a virtual clock: the command's object, the oracle's bound, scaling of the load, what a fleet pays."""

from __future__ import annotations

import json
import random
import time
from dataclasses import fields, replace
from xml.etree import ElementTree

import numpy as np
import pytest
from typer.testing import CliRunner

from cluster.errors import BiremeError
from deployments.cli import app
from deployments.commands.simulate import _settings
from deployments.simulator.arrivals import Arrivals, scaled
from deployments.simulator.compare import Schedule
from deployments.simulator.oracle import factor_for, lower_bound
from deployments.simulator.requests.requests_fleet import simulate_requests
from deployments.simulator.scaler import PolicyScaler
from deployments.simulator.setup import SimulatorSettings
from deployments.simulator.study import Study
from tests.test_docs import shown_block


def azure(rate: float, seconds: int, seed: int = 0) -> str:
    rng, at, rows = random.Random(seed), 0.0, []
    while (at := at + rng.expovariate(rate)) < seconds:
        clock = f"2024-01-01 00:{int(at) // 60:02d}:{at % 60:010.7f}"
        rows.append(f"{clock},{rng.randint(50, 2000)},{rng.randint(5, 300)}")
    return "\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]) + "\n"


def simulated(tmp_path, text: str, *options: str) -> dict:
    file = tmp_path / "trace"
    file.write_text(text)
    found = CliRunner().invoke(app, ["simulate", str(file), "--json", *options])
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


def test_one_object_says_what_the_policy_achieves_and_what_the_oracle_pays(tmp_path):
    found = simulated(tmp_path, azure(4.0, 300), "--engines-mean", "3")
    assert 0.9 < found["attainment"] <= 1
    assert found["oracle_mean_engines"] == pytest.approx(3, rel=0.1)
    assert found["oracle_engine_hours"] < found["engine_hours"] < 3 * found["oracle_engine_hours"]


def test_the_order_of_rows_is_no_matter(tmp_path):
    head, *rows = azure(3.0, 120).splitlines()
    mixed = list(rows)
    random.Random(1).shuffle(mixed)
    options = "--engines-mean", "2"
    assert simulated(tmp_path, "\n".join([head, *mixed]), *options) == simulated(
        tmp_path, "\n".join([head, *rows]), *options
    )


def test_a_single_request_has_its_answer(tmp_path):
    found = simulated(tmp_path, '{"timestamp": 5, "input_length": 100, "output_length": 20}\n')
    assert (found["requests"], found["attainment"], found["load_factor"]) == (1, 1.0, 1.0)


def test_rates_are_enough(tmp_path):
    rates = "second,requests_per_second\n" + "".join(f"{60 * i},{20 + 10 * (i % 3)}\n" for i in range(12))
    found = simulated(tmp_path, rates)
    assert found["attainment"] > 0.9
    assert found["engine_hours"] > found["oracle_engine_hours"] > 0


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "TIMESTAMP,ContextTokens\n2024-01-01 00:00:00,5\n"])
def test_what_is_no_recording_is_one_clear_error(tmp_path, text):
    file = tmp_path / "trace"
    file.write_text(text)
    found = CliRunner().invoke(app, ["simulate", str(file), "--json"])
    assert found.exit_code == 1
    assert "Error" in found.output and "Traceback" not in found.output


def test_a_setting_that_is_none_is_named(tmp_path):
    (tmp_path / "trace").write_text(azure(1.0, 60))
    (tmp_path / "settings.json").write_text('{"slots": 3}')
    found = CliRunner().invoke(app, ["simulate", str(tmp_path / "trace"), "--config", str(tmp_path / "settings.json")])
    assert found.exit_code == 1 and "slots is no setting" in found.output


@pytest.mark.parametrize("bounds", [(5, 2), (-1, 2)])
def test_bounds_that_no_fleet_keeps_are_refused(tmp_path, bounds):
    lowest, highest = bounds
    (tmp_path / "settings.json").write_text(json.dumps({"policy": {"min_replicas": lowest, "max_replicas": highest}}))
    with pytest.raises(BiremeError, match=rf"policy.min_replicas \({lowest}\) must be at least 0 and at most .*\(2\)"):
        _settings(tmp_path / "settings.json")


@pytest.mark.parametrize(("at", "code"), [(20, 0), (600, 1)])
def test_an_event_behind_the_end_of_the_recording_is_refused(tmp_path, at, code):
    (tmp_path / "trace").write_text(azure(1.0, 30))
    command = ["simulate", str(tmp_path / "trace"), "--event", f"at={at} event=death", "--json"]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == code
    assert ("death at 600 s: what is simulated of the recording ends at 2" in found.stderr) == bool(code)


def test_a_plan_names_its_costs(tmp_path):
    (tmp_path / "trace").write_text(azure(4.0, 120))
    command = ["plan", str(tmp_path / "trace"), "--slo", "ttft_s=3", "--price", "2", "--json"]
    found = json.loads(CliRunner().invoke(app, command).stdout)
    hours = found["engine_hours"]
    assert hours["oracle, at least"] <= hours["this policy"]
    assert found["cost"]["this policy"] == 2 * hours["this policy"]
    fixed = found["fixed_engines"]
    assert hours["smallest fixed fleet"] == pytest.approx(fixed * found["span_s"] / 3600)
    settings = replace(SimulatorSettings(), policy=replace(SimulatorSettings().policy, slo_ttft_s=3.0))
    study = Study(tmp_path / "trace", settings, None)
    attained = [study.run(Schedule([count], 1.0), initial=count).attainment for count in (fixed - 1, fixed) if count]
    assert attained[-1] >= 0.99 and all(share < 0.99 for share in attained[:-1])


def test_a_plan_says_where_the_share_is_missed(tmp_path):
    (tmp_path / "trace").write_text(azure(4.0, 120))
    command = ["plan", str(tmp_path / "trace"), "--slo", "ttft_s=0.001"]
    said = CliRunner().invoke(app, command).stdout
    assert "no fixed fleet of twice the peak is enough" in said
    assert "less than the 99% that are wanted" in said


@pytest.mark.parametrize(
    ("text", "step", "error"),
    [
        ('{"costs": {"step": 0.03}}', 0.03, ""),
        ('{"costs": [0.03, 1e-4, 1e-4, 0.0], "policy": {"costs": {"decode_row": 1e-3}}}', 0.03, ""),
        (
            '{"costs": {"steps": 0.03}}',
            0,
            "costs.steps is no cost; allowed: step, prefill_token, decode_row, context_token",
        ),
    ],
)
def test_costs_are_given_by_name(tmp_path, text, step, error):
    (tmp_path / "settings.json").write_text(text)
    if error:
        with pytest.raises(BiremeError, match=error):
            _settings(tmp_path / "settings.json")
    else:
        assert _settings(tmp_path / "settings.json").costs.step == step


def test_the_page_shows_the_defaults(tmp_path):
    text = shown_block("docs/simulate.md", __file__)
    assert set(json.loads(text)) < {field.name for field in fields(SimulatorSettings)}
    (tmp_path / "settings.json").write_text(text)
    assert _settings(tmp_path / "settings.json") == SimulatorSettings()


def test_the_policy_knows_how_long_starts_take():
    assert PolicyScaler(SimulatorSettings(start_times_s=(50.0, 60.0, 90.0))).settings.start_s == 60.0


def poisson(rate: float, seconds: float) -> Arrivals:
    rng = np.random.default_rng(0)
    at = np.sort(rng.uniform(0, seconds, int(rate * seconds)))
    return Arrivals(at, np.full(len(at), 800.0), np.full(len(at), 150.0), None, seconds)


def test_load_is_scaled_in_place():
    load, settings = poisson(3.0, 600.0), SimulatorSettings()
    more = scaled(load, factor_for(load, settings, 6.0), settings)
    assert lower_bound(more, settings, 0.0).mean_engines == pytest.approx(6.0, rel=0.05)
    assert np.all(np.diff(more.at) >= 0) and more.at.max() <= 600.0


def test_no_fleet_serves_for_less_than_the_oracle():
    settings = SimulatorSettings()
    load = poisson(40.0, 240.0)
    bound = lower_bound(load, settings)
    short = max(1, int(bound.mean_engines * 0.9))
    found = simulate_requests(load, settings, Schedule([short], 1.0), short)
    assert found.attainment < settings.policy.slo_share
    plenty = 3 * short
    found = simulate_requests(load, settings, Schedule([plenty], 1.0), plenty)
    assert found.attainment > settings.policy.slo_share and found.engine_hours > bound.engine_hours


def test_a_fleet_wakes_from_nothing_without_its_policy(tmp_path):
    settings = SimulatorSettings()
    settings = replace(settings, policy=replace(settings.policy, min_replicas=0))
    (tmp_path / "trace").write_text(azure(0.2, 60))
    study = Study(tmp_path / "trace", settings, None)
    found = simulate_requests(study.load, settings, Schedule([0], 1.0), 0)
    assert found.num_starts >= 1 and np.isfinite(found.ttft_s["p99"])
    assert found.ttft_s["p99"] >= min(settings.start_times_s) / 2


def test_a_picture_shows_every_rule_and_the_oracle(tmp_path):
    (tmp_path / "trace").write_text(azure(4.0, 120))
    command = ["simulate", str(tmp_path / "trace"), "--engines-mean", "2", "--compare", "--json", "--svg"]
    assert CliRunner().invoke(app, [*command, str(tmp_path / "picture.svg")]).exit_code == 0
    root = ElementTree.fromstring((tmp_path / "picture.svg").read_text())
    texts = {text.text for text in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"this policy", "Serve's default", "target queue", "regression, 80 % guard", "oracle, at least"} <= texts
    assert all("nan" not in line.get("points", "") for line in root.iter("{http://www.w3.org/2000/svg}polyline"))
    refused = CliRunner().invoke(app, [*command, str(tmp_path / "nowhere" / "picture.svg")])
    assert refused.exit_code == 1 and "No such file" in refused.output


def test_engines_that_nobody_asks_cost_next_to_nothing():
    """So that a fleet of ten thousand is simulated in minutes."""
    load, settings, took = poisson(20.0, 60.0), SimulatorSettings(), {}
    for engines in (40, 4000):
        began = time.process_time()
        simulate_requests(load, settings, Schedule([engines], 1.0), engines)
        took[engines] = time.process_time() - began
    assert took[4000] < 5 * took[40]
