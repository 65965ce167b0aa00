"""How many words make so many tokens: asked of the server, because its vocabulary is not known here."""

from __future__ import annotations

from dataclasses import replace

from cluster.bench.load import Load, Request
from cluster.bench.processes import LoadProcesses

_SHORT, _LONG = 32, 160


def fitted(load: Load, processes: LoadProcesses) -> Load:
    """``load`` whose text has the lengths that were asked for, as far as two prompts tell; unchanged if the server does not count
    prompts."""
    requests = tuple(Request(-1000 - i, words, 1) for i, words in enumerate((_SHORT, _LONG)))
    processes.start(replace(load, requests=requests, streams=processes.count, repeats=False, num_warmups=0))
    counted = {s.index: s.prompt_tokens for s in processes.result().samples if s.is_whole and s.prompt_tokens}
    if len(counted) < len(requests):
        return load
    short, long = (counted[request.index] for request in requests)
    tokens_a_word = (long - short) / (_LONG - _SHORT)
    if tokens_a_word <= 0:
        return load
    around = short - _SHORT * tokens_a_word
    return replace(load, prompts=replace(load.prompts, tokens_a_word=tokens_a_word, tokens_around=around))
