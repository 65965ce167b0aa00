"""What a person reads once the model answers: a framed block, and below it a command to copy, which stands alone in its line."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any


def ready_block(rows: Mapping[str, str], columns: int) -> list[str]:
    """``rows`` by name in a frame, as narrow as they are; where that is more than ``columns``, values are parted between words,
    and the frame has no right side: a path or a URL stays whole."""
    width = max(map(len, rows))
    texts = [f"{name:<{width}}  {value}" for name, value in rows.items()]
    inner = max(map(len, texts))
    if inner + 4 > columns:
        bar = "─" * max(0, columns - 1)
        room = max(20, columns - width - 4)
        parted = [
            (name, textwrap.wrap(value, room, break_long_words=False, break_on_hyphens=False))
            for name, value in rows.items()
        ]
        lines = [
            f"│ {'' if number else name:<{width}}  {line}" for name, part in parted for number, line in enumerate(part)
        ]
        return [f"┌{bar}", *lines, f"└{bar}"]
    bar = "─" * (inner + 2)
    return [f"┌{bar}┐", *(f"│ {text:<{inner}} │" for text in texts), f"└{bar}┘"]


def memory_row(num_blocks: int, block_size: int, max_model_len: int, max_num_seqs: int) -> str:
    """The memory plan: how many streams of which length the KV cache holds.

    Args:
        num_blocks, block_size: of the KV cache; tokens a block.
        max_model_len: tokens of the longest stream.
        max_num_seqs: most streams at once.
    """
    tokens = num_blocks * block_size
    blocks_a_stream = -(-max_model_len // block_size)
    streams = num_blocks // blocks_a_stream
    return f"{streams} × {max_model_len:,} tokens (KV cache of {tokens:,}), at most {max_num_seqs} streams at once"


def device_row(stats: Mapping[str, Any]) -> str:
    """Where an engine computes, of ``RunnerActor.stats``."""
    if not stats.get("device"):
        return "no engine runs; the first request starts one"
    row = f"{stats['device']}"
    if dtype := stats.get("dtype"):
        row += f", {dtype}"
    if memory := stats.get("memory"):
        row += f", {memory['total_bytes'] / 2**30:.0f} GiB"
    return row
