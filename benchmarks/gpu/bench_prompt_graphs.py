"""What graphs of steps with prompts bring a small model on a GPU, and prompts that wait for others: without and with them, in
turns, on one engine in this process.

    python -m benchmarks.gpu.bench_prompt_graphs [--rounds 3] [--seconds 3] [--streams 1 64 256] [--delays 0 4]
                                                 [--spread 0.5] [--no-single-ops]

One client asks with 512 tokens for 16, more ask with 256 for 128 to 384, so that they are out of step. Random weights of
SmolLM2-135M's sizes. Medians of the rounds. --delays: values of prefill_delay_steps.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path

from actors.runner.graph_capture import CapturedGraph
from actors.runner.sampler import SamplingGraph
from actors.runner.step_graphs import StepGraphs
from actors.scheduling.step_plan import StepPlan
from benchmarks.gpu.model_sizes import SMOLLM2_SIZES, write_config
from benchmarks.in_process import InProcess
from cluster.config import EngineConfig


class Switched:
    """Graphs of all steps, or of decode steps alone; notes which steps have prompts."""

    def __init__(self, graphs: StepGraphs) -> None:
        self._graphs = graphs
        self.with_prompts = True
        self._has_prefill = False
        self.prompt_steps: set[int] = set()

    def forward(self, plan: StepPlan) -> CapturedGraph | None:
        self._has_prefill = plan.has_prefill
        if plan.has_prefill:
            self.prompt_steps.add(plan.step)
        return None if plan.has_prefill and not self.with_prompts else self._graphs.forward(plan)

    def sample(self, num_samples: int, kind: SamplingGraph) -> bool:
        return (self.with_prompts or not self._has_prefill) and self._graphs.sample(num_samples, kind)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--delays", type=int, nargs="+", default=[0, 4])
    parser.add_argument("--spread", type=float, default=0.5, help="share by which answers are shorter or longer")
    parser.add_argument("--no-single-ops", action="store_true", help="leave out steps with prompts outside graphs")
    options = parser.parse_args()
    ways = [] if options.no_single_ops else [(False, 0)]
    ways += [(True, delay) for delay in options.delays]

    with tempfile.TemporaryDirectory() as folder:
        write_config(Path(folder), SMOLLM2_SIZES)
        settings = {"model": folder, "load_format": "dummy", "device": "gpu", "block_size": 64, "max_num_seqs": 256}
        bench = InProcess(EngineConfig(**settings, max_model_len=1024, enable_prefix_caching=False))
    runner = bench.engine.executor
    memory = runner.figures()["memory"]
    print(f"{runner.device_name}: {memory['num_graphs']} graphs, {memory['graph_bytes'] / 2**30:.2f} GiB")
    switch = runner.graphs = Switched(runner.graphs)
    save = runner.save_output
    steps: list[tuple[float, float]] = []

    def noted():
        result = save()
        step = runner.last_saved
        if result.step in switch.prompt_steps:
            steps.append((step.enqueued_at - step.launched_at, step.device_end - step.device_start))
        return result

    runner.save_output = noted
    found = defaultdict(list)
    for _ in range(options.rounds):
        for streams in options.streams:
            for way in ways:
                switch.with_prompts, bench.engine.scheduler.prefill_delay.max_steps = way
                steps.clear()
                many = (streams, 256, 256, options.seconds, options.spread)
                load = (1, 512, 16, options.seconds) if streams == 1 else many
                window = bench.window(*load)
                launching, device = (1e3 * statistics.median(values) for values in zip(*steps))
                found[(streams, *way)].append((window.tokens_per_s, window.first_ms, launching, device))
    bench.close()
    for (streams, with_prompts, delay), values in found.items():
        tokens, first, launching, device = map(statistics.median, zip(*values))
        graphs = f"{'with' if with_prompts else 'without'} graphs of prompts, which wait for {delay} steps"
        print(
            f"{streams:4} clients, {graphs}: {tokens:8.0f} tokens/s, first token {first:6.1f} ms; "
            f"a step with a prompt {launching:.2f} ms to launch, {device:.2f} on the device"
        )


if __name__ == "__main__":
    main()
