"""Another recording of the same kind, for figures on load that no setting was chosen on.

    python docs/lab/vary_trace.py IN OUT [SEED]

Minutes (a tenth of the time for rates) are drawn anew with neighbours together, time runs by turns faster and slower, and
within a minute requests are drawn with replacement. The format stays that of IN.
"""

from __future__ import annotations

import csv
import json
import sys
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from cluster.scaling.traces import read_trace

_BLOCK = 5


def main(source: Path, target: Path, seed: int) -> None:
    rng, trace = np.random.default_rng(seed), read_trace(source)
    if trace.rates:
        rates = np.array([rate for _, rate in trace.rates])
        size = max(1, len(rates) // 10)
        blocks = [rates[i * size : (i + 1) * size] for i in range(10)]
        mixed = np.concatenate([blocks[i] for i in rng.permutation(10)]) * np.exp(0.05 * rng.standard_normal(size * 10))
        rows = [("second", "requests_per_second")] + [(i * trace.step_s, f"{rate:.3f}") for i, rate in enumerate(mixed)]
        with open(target, "w", newline="") as file:
            csv.writer(file).writerows(rows)
        return
    requests, length = trace.requests, trace.requests[-1].at
    minutes = max(1, int(length // 60))
    begins = [_BLOCK * int(i) for i in rng.integers(0, max(1, minutes // _BLOCK), -(-minutes // _BLOCK))]
    order = [begin + k for begin in begins for k in range(_BLOCK)][:minutes]
    by_minute: dict[int, list] = {}
    for request in requests:
        by_minute.setdefault(int(request.at // 60), []).append(request)
    chosen = []
    for place, minute in enumerate(order):
        pool = by_minute.get(minute, [])
        for i in rng.integers(0, max(1, len(pool)), len(pool)):
            at = 60 * place + pool[i].at % 60 + rng.uniform(-5, 5)
            chosen.append((at + length / 80 * np.sin(6 * np.pi * at / length), pool[i]))
    first = min(at for at, _ in chosen)
    chosen = sorted(((at - first, request) for at, request in chosen), key=lambda pair: pair[0])
    with open(target, "w", newline="") as file:
        if source.suffix == ".jsonl":
            for at, r in chosen:
                row = {"timestamp": at * 1e3, "input_length": r.prompt_tokens, "output_length": r.output_tokens}
                file.write(json.dumps({**row, "hash_ids": [name for name, _ in r.prefix]}) + "\n")
        else:
            rows = csv.writer(file)
            rows.writerow(["TIMESTAMP", "ContextTokens", "GeneratedTokens"])
            for at, r in chosen:
                moment = datetime(2024, 1, 1) + timedelta(seconds=float(at))
                rows.writerow([f"{moment:%Y-%m-%d %H:%M:%S.%f}0", r.prompt_tokens, r.output_tokens])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0)
