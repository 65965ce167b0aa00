"""A tiny engine through prefill, graphs, sampling, penalties, log-probabilities and a preemption, for compute-sanitizer.

compute-sanitizer --tool memcheck --report-api-errors no python -m tests.gpu.parts.small_engine
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.actors.runner.test_overlap import mixed_requests, preempt_at
from tests.engines import tokens_of
from tests.gpu.parts.engines import gpu_engine, write_tiny_gpu_model


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        engine = gpu_engine(write_tiny_gpu_model(Path(folder)), max_num_seqs=2, max_num_batched_tokens=32)
    preempt_at(engine, {"greedy": [3], "sampled": [5]})
    requests = mixed_requests()
    deltas = engine.generate(requests)
    engine.check_integrity()
    assert engine.scheduler.num_preemptions == 2
    for one in requests:
        assert tokens_of(deltas[one.request_id]) and deltas[one.request_id][-1].finish_reason
    engine.close()
    print("small engine: every request was answered")


if __name__ == "__main__":
    main()
