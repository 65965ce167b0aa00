"""What stands around engines on a GPU machine: HTTP beside in process, two engines beside one, engines that compute nothing.

    python -m benchmarks.gpu.bench_plane_table [--gpus N] [--models 135M 8B nothing] [--spread 0.5] [--tokenizer FILE]
                                               [--ingresses 8] [--json FILE]

Random weights of the sizes of Llama-3.1-8B and SmolLM2-135M, prompts of token ids, greedy answers that ignore the end of text,
closed loops of clients. Answers of one length let the clients of an engine in process keep step, so that all prompts are
computed together; with a --spread clients are out of step, wherever they are. With one GPU, what needs two is left out.
--device cpu tries the program with tiny models; figures are a GPU's. Every part that fails says so in its lines, and the others
go on. Figures come last.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.model_sizes import SMOLLM2_SIZES, write_config
from benchmarks.serving.bench_plane import Row, idle_cpu, measure
from benchmarks.serving.loads import Tokens, checked, closed_loop
from benchmarks.serving.process_cpu import num_processes
from benchmarks.serving.served_app import ServedApp, settings_config
from cluster.bench.processes import LoadProcesses
from cluster.config import DEFAULT_MODEL

_TINY_SIZES = SMOLLM2_SIZES | {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
                               "num_key_value_heads": 1}  # fmt: skip
# Tokens of a prompt and of its answer: many streams, and first tokens.
_STREAMS, _FIRST = (256, 256), (512, 16)
_IDLE_S = 2.0
_SETTLED_S = 20.0
_IN_PROCESS_TIMEOUT_S = 150.0


@dataclass(frozen=True)
class Model:
    """One of the two sizes.

    Attributes:
        streams: numbers of clients of one engine, the first of which also counts for two.
        first_ms: wanted first token of one client with 512 tokens.
        seconds: of a load.
    """

    name: str
    sizes: dict[str, Any]
    slots: int
    streams: tuple[int, ...]
    shares: tuple[float, ...]
    first_ms: float
    seconds: float


MODELS = (
    Model("135M", SMOLLM2_SIZES, 512, (64, 256, 512), (0.95, 0.90, 0.90), 9.0, 6.0),
    # The vocabulary of the tokenizer that it borrows: of tokens beyond there is no text, and clients count texts.
    Model("8B", {"vocab_size": 49152, "eos_token_id": 2, "bos_token_id": 1}, 64, (64,), (0.95,), 19.0, 9.0),
)
# Beside the models: sixteen engines that compute nothing.
_NOTHING = "nothing"
_PARTS = [*(model.name for model in MODELS), _NOTHING]
_SMALL = (
    Model("135M", _TINY_SIZES, 8, (4, 8), (0.95, 0.90), 9.0, 2.0),
    Model("8B", _TINY_SIZES, 4, (4,), (0.95,), 19.0, 2.0),
)


class Table:
    """All that is measured, and the lines of it.

    Attributes:
        rows: what is to be kept, by what was measured.
        lines: of a Markdown table.
        failed: whether a part did.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._is_small = options.device == "cpu"
        self._folder = Path(tempfile.mkdtemp(prefix="bireme-plane-"))
        self._logs = Path(options.logs or self._folder)
        self._logs.mkdir(parents=True, exist_ok=True)
        self.rows: dict[str, Any] = {}
        self.lines = ["| what | measured | wanted |", "|---|---|---|"]
        self.failed = False
        self._began = time.monotonic()

    def measure(self) -> None:
        """Everything, part by part."""
        all_models = _SMALL if self._is_small else MODELS
        models = tuple(model for model in all_models if model.name in self._options.models)
        for model in all_models:
            (self._folder / model.name).mkdir()
            write_config(self._folder / model.name, model.sizes)
        windows = (self._part("in process", lambda: self._in_process(models)) or {}) if models else {}
        for model in models:
            one = self._part(f"{model.name}, one engine", partial(self._one_engine, model, windows.get(model.name)))
            needed = self._part(
                f"{model.name}, one engine, ingresses as needed",
                partial(self._ingresses_as_needed, model, windows.get(model.name)),
            )
            if self._options.gpus > 1:
                self._part(f"{model.name}, two engines", partial(self._two_engines, model, one, needed))
        if _NOTHING in self._options.models:
            self._part("engines that compute nothing", self._simulated)

    def print_lines(self, gpus: list[str]) -> None:
        """The table, under the machine's name."""
        cores = len(os.sched_getaffinity(0))
        where = f"{self._options.gpus} × {gpus[0]}" if gpus else f"no GPU, {platform.machine()}"
        print(f"\n{where}, {cores} cores\n")
        print("\n".join(self.lines))

    def _part(self, name: str, run: Callable[[], Any]) -> Any:
        began = time.monotonic()
        try:
            return run()
        except Exception as error:  # one part's failure must not cost the others' figures
            self.failed = True
            self._add(name, f"FAILED: {type(error).__name__}: {error}"[:300], "")
            return None
        finally:
            now = time.monotonic()
            print(f"{name}: {now - began:.0f} s, {now - self._began:.0f} s in all", flush=True)

    def _add(self, what: str, measured: str, wanted: str) -> None:
        self.lines.append(f"| {what} | {measured} | {wanted} |")
        print(f"    {what}: {measured}", flush=True)

    @property
    def _streams(self) -> tuple[Tokens, Tokens]:
        """Of many streams: tokens of a prompt and of its answer."""
        prompt, answer = _STREAMS
        spread = round(answer * self._options.spread)
        return prompt, (answer - spread, answer + spread) if spread else answer

    def _engine_settings(self, model: Model) -> dict[str, Any]:
        settings = {
            "model": str(self._folder / model.name),
            "load_format": "dummy",
            "device": self._options.device,
            "max_num_seqs": model.slots,
            "max_model_len": 2048,
        }
        return settings | ({"num_threads": 1} if self._is_small else {"block_size": 64})

    def _in_process(self, models: tuple[Model, ...]) -> dict[str, list[dict[str, float]]]:
        """Windows of each model; with two GPUs both at once."""
        waiting: list[tuple[Model, subprocess.Popen]] = []
        windows: dict[str, list[dict[str, float]]] = {}

        def finish() -> None:
            while waiting:
                model, process = waiting.pop(0)
                try:
                    out, _ = process.communicate(timeout=_IN_PROCESS_TIMEOUT_S)
                finally:
                    process.kill()
                if process.returncode:
                    self.failed = True
                    self._add(f"{model.name} in process", f"FAILED, exit status {process.returncode}", "")
                    continue
                windows[model.name] = json.loads(
                    next(line for line in reversed(out.splitlines()) if line.startswith("[{"))
                )

        for number, model in enumerate(models):
            loads = [
                (1, *_FIRST, 3.0),
                *((streams, *_STREAMS, model.seconds, self._options.spread) for streams in model.streams),
            ]
            command = [
                sys.executable,
                "-m",
                "benchmarks.in_process",
                json.dumps(self._engine_settings(model)),
                json.dumps(loads),
            ]
            gpu = number % self._options.gpus if not self._is_small else 0
            log = (self._logs / f"in-process-{model.name}.log").open("w")
            environment = os.environ | {"CUDA_VISIBLE_DEVICES": str(gpu)}
            waiting.append(
                (model, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment, text=True))
            )
            if gpu == self._options.gpus - 1 or self._is_small:
                finish()
        finish()
        self.rows["in process"] = windows
        return windows

    def _one_engine(self, model: Model, windows: list[dict[str, float]] | None) -> Row:
        loads = [(1, _FIRST, 3.0), *((streams, self._streams, model.seconds) for streams in model.streams)]
        first, *rows = self._served(model, 1, 1, loads)
        inside_first, *inside = windows or [{}] * (1 + len(rows))
        self._first_token(f"{model.name}, 1 client, 512 prompt tokens", first, inside_first, 6.0, model.first_ms)
        self._first_tokens(model.name, rows, inside)
        for row, window, wanted in zip(rows, inside, model.shares, strict=True):
            self._beside_in_process(model.name, row, window, wanted)
        return rows[0]

    def _ingresses_as_needed(self, model: Model, windows: list[dict[str, float]] | None) -> Row:
        """The same loads behind as many ingresses as their CPU use asks for, which is what there is without a setting."""
        _, *inside = windows or [{}] * (1 + len(model.streams))
        rows = self._served(model, 1, None, [(streams, self._streams, model.seconds) for streams in model.streams])
        self._first_tokens(f"{model.name}, ingresses as needed", rows, inside)
        for row, window, wanted in zip(rows, inside, model.shares, strict=True):
            self._beside_in_process(f"{model.name}, ingresses as needed", row, window, wanted)
        return rows[0]

    def _beside_in_process(self, name: str, row: Row, window: dict[str, float], wanted: float) -> None:
        share = f"{row.tokens_per_s / window['tokens_per_s']:.3f} × of {window['tokens_per_s']:,.0f}" if window else "?"
        self._add(f"{name}, {row.streams} clients: tokens/s over HTTP beside in process",
                  f"{row.tokens_per_s:,.0f} = {share}", f"≥ {wanted:.2f} ×")  # fmt: skip
        self._costs(name, row)

    def _two_engines(self, model: Model, one: Row | None, one_needed: Row | None) -> None:
        """One ingress, two, and as many as needed, with the clients of one engine for each, over one engine behind as many."""
        before: Row | None = None
        for ingresses, single in ((1, one), (2, one), (None, one_needed)):
            (row,) = self._served(model, 2, ingresses, [(2 * model.streams[0], self._streams, model.seconds)])
            times = f" = {row.tokens_per_s / single.tokens_per_s:.2f} × one engine" if single else ""
            behind = "as many ingresses as needed" if ingresses is None else f"{ingresses} ingresses"
            self._add(f"{model.name}, two engines, {behind}, {row.streams} clients: tokens/s",
                      f"{row.tokens_per_s:,.0f}{times}", "≥ 1.95 ×")  # fmt: skip
            self._costs(model.name, row)
            if before is not None:
                self._add(
                    f"{model.name}: {behind} over one", f"{row.tokens_per_s / before.tokens_per_s:.2f} ×", "≥ 1.00 ×"
                )
            before = before or row

    def _first_tokens(self, name: str, rows: list[Row], windows: list[dict[str, float]]) -> None:
        """Of each number of clients; what is wanted is said of the first."""
        for number, (row, window) in enumerate(zip(rows, windows, strict=True)):
            what = f"{name}, {row.streams} clients, {_STREAMS[0]} prompt tokens"
            self._first_token(what, row, window, None if number else 15.0, None)

    def _first_token(
        self, what: str, row: Row, window: dict[str, float], more_ms: float | None, at_most_ms: float | None
    ) -> None:
        over = f", {row.first_ms[0] - window['first_ms']:+.1f} beside in process" if window else ""
        wanted = ", ".join(
            f"≤ {sign}{most_ms:.0f} ms" for sign, most_ms in (("+", more_ms), ("", at_most_ms)) if most_ms is not None
        )
        self._add(f"{what}: first token", f"{row.first_ms[0]:.1f} ms (p95 {row.first_ms[1]:.1f}){over}", wanted)

    def _costs(self, name: str, row: Row) -> None:
        def us(*kinds: str) -> str:
            return f"{sum(row.cpu_us.get(kind, 0.0) for kind in kinds) / max(1.0, row.tokens_per_s):.1f}"

        self._add(f"{name}, {row.streams} clients: CPU of a token, requests' included",
                  f"proxy + ingress {us('proxy', 'ingress')} µs, replica {us('replica')}, runner {us('runner')}, "
                  f"client {us('client')}; "
                  f"gap p50 {row.gap_ms[0]:.1f} ms, p95 {row.gap_ms[1]:.1f}; "
                  f"engines made {row.engine_shares[0]:.2f} to {row.engine_shares[1]:.2f} of their mean", "≤ 20 µs")  # fmt: skip

    def _served(
        self, model: Model, engines: int, ingresses: int | None, loads: list[tuple[int, tuple[Tokens, Tokens], float]]
    ) -> list[Row]:
        """Rows of the loads behind so many ingresses; None: as many as the largest of them needs."""
        few = {"num_cpus": 0.01}
        fixed = {} if ingresses is None else {"num_replicas": ingresses}
        settings = self._engine_settings(model) | {
            "tokenizer": self._options.tokenizer,
            "model_id": model.name,
            "max_queued_requests": 4096,
            "runner_num_cpus": 0.05,
            "deployment_config": {"num_replicas": engines, "ray_actor_options": few},
            "ingress_config": {**fixed, "ray_actor_options": few},
        }
        name = f"{model.name}-{engines}-{ingresses or 'needed'}"
        return self._run(name, settings, engines, loads, settles=ingresses is None)

    def _simulated(self) -> None:
        """Sixteen engines that replay tokens, on sixteen cores; the clients have the others, where there are more."""
        cores = sorted(os.sched_getaffinity(0))
        engines, streams, ingresses = (2, 8, 1) if self._is_small else (16, 2048, self._options.ingresses)
        theirs = cores[:16]
        few = {"num_cpus": 0.01}
        settings = {
            "device": "simulated",
            "tokenizer": self._options.tokenizer,
            "simulated_step_s": 0.005,
            "max_num_seqs": 256,
            "max_queued_requests": 4096,
            "max_model_len": 2048,
            "runner_num_cpus": 0.05,
            "deployment_config": {"num_replicas": engines, "ray_actor_options": few},
            "ingress_config": {"num_replicas": ingresses, "ray_actor_options": few},
        }
        if self._options.tokenizer != DEFAULT_MODEL:
            settings |= {"model": str(self._folder / "135M"), "load_format": "dummy", "model_id": "135M"}
        loads = [(streams, _STREAMS, 2.0 if self._is_small else 8.0)]
        (row,) = self._run("simulated", settings, engines, loads, server_cores=theirs, client_cores=cores[16:] or cores)
        what = f"{engines} engines that compute nothing, {streams} streams, {ingresses} ingresses, {len(theirs)} cores: tokens/s"
        self._add(what, f"{row.tokens_per_s:,.0f}", "≥ 200,000")  # fmt: skip
        self._costs("engines that compute nothing", row)

    def _run(
        self, name: str, settings: dict[str, Any], engines: int, loads: list[tuple[int, tuple[Tokens, Tokens], float]],
        server_cores: list[int] | None = None, client_cores: list[int] | None = None, settles: bool = False,
    ) -> list[Row]:  # fmt: skip
        """Serve, wait until all engines are there, where it ``settles`` until so are the ingresses, and measure ``loads``."""
        cores = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, server_cores or cores)
            app = ServedApp(settings_config(settings), str(self._logs / f"{name}.log"))
            os.sched_setaffinity(0, client_cores or cores)
            clients = LoadProcesses(max(1, min(16, len(client_cores or cores) // 2)))
        finally:
            os.sched_setaffinity(0, cores)
        try:
            deadline = time.monotonic() + 120
            while len(app.engines()) < engines:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{len(app.engines())} of {engines} engines came")
                time.sleep(0.25)
            idle = idle_cpu(app, _IDLE_S)
            rows = []
            if settles:
                _settle(name, app, clients, *max(loads))
            for streams, tokens, seconds in loads:
                rows.append(measure(app, clients, streams, tokens, seconds, idle))
                made = [engine["num_generated_tokens"] for engine in app.engines()]
                print(f"{name}, {streams} streams: tokens of each engine so far {made}", flush=True)
            self.rows[name] = [asdict(row) for row in rows]
            return rows
        finally:
            clients.close()
            app.close()


def _settle(
    name: str, app: ServedApp, clients: LoadProcesses, streams: int, tokens: tuple[int, int], seconds: float
) -> None:
    """Hold a load until the number of ingresses has stayed the same for as long as Serve looks back, and twice as long."""
    numbers, since = [1], time.monotonic()
    while time.monotonic() - since < _SETTLED_S and len(numbers) < 10:
        clients.start(closed_loop(app, streams, tokens, seed=len(numbers), seconds=seconds))
        checked(clients.result())
        numbers.append(num_processes(app.process_group)["ingress"])
        if numbers[-1] != numbers[-2]:
            since = time.monotonic()
    print(f"{name}, {streams} streams: ingresses from window to window {numbers}", flush=True)


def _gpus() -> list[str]:
    """Names of those that this process may use."""
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True
        )
    except FileNotFoundError:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = listed.stdout.splitlines() if not listed.returncode else []
    return names if visible is None else names[: len([part for part in visible.split(",") if part])]


def main() -> None:
    """Measure, and print the table last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--gpus", type=int, help="how many count; default: all, at most two")
    parser.add_argument(
        "--models", nargs="+", choices=_PARTS, default=_PARTS, help="nothing: engines that compute nothing"
    )
    parser.add_argument(
        "--spread",
        type=float,
        default=0.0,
        help="share by which answers of many streams are shorter or longer, 0 to 0.9",
    )
    parser.add_argument("--ingresses", type=int, default=8, help="of the sixteen engines that compute nothing")
    parser.add_argument(
        "--tokenizer", default=DEFAULT_MODEL, help="a tokenizer.json, where the default model is not at hand"
    )
    parser.add_argument("--logs", help="folder for the servers' logs")
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args()
    if not 0 <= options.spread <= 0.9:
        parser.error(f"--spread is {options.spread}, needs 0 to 0.9")
    names = _gpus()
    options.gpus = options.gpus or (2 if options.device == "cpu" else min(2, max(1, len(names))))
    table = Table(options)
    try:
        table.measure()
    finally:  # when time is over, what there is
        if options.json:
            options.json.write_text(json.dumps(table.rows))
        table.print_lines(names)
    sys.exit(table.failed)


if __name__ == "__main__":
    main()
