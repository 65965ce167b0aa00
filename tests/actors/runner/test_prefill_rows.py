"""What a step with prefill hands to the model: no more slots than have rows."""

from __future__ import annotations

from tests.engines import make_engine, request, tokens_of, write_tiny_model


def test_slots_behind_the_last_with_rows_are_left_out(tmp_path, monkeypatch):
    folder = write_tiny_model(tmp_path)
    engine = make_engine(folder, max_num_seqs=16, max_num_batched_tokens=40)
    seen = []
    forward = engine.executor.model.forward

    def recorded(rows, kv_cache):
        if rows.cu_seqlens_q is not None:
            starts = rows.cu_seqlens_q.numpy()
            seen.append((rows.block_tables.shape[0], len(starts), int(starts[-1]), rows.positions.shape[0]))
            assert rows.slots.numpy().max() < rows.block_tables.shape[0]
        return forward(rows, kv_cache)

    monkeypatch.setattr(engine.executor.model, "forward", recorded)
    prompts = {str(i): list(range(3 + i, 20 + 5 * i)) for i in range(3)}
    deltas = engine.generate([request(name, prompt) for name, prompt in prompts.items()])
    engine.close()
    assert [slots for slots, *_ in seen] == sorted(slots for slots, *_ in seen)
    assert {slots for slots, *_ in seen} <= {1, 2, 3}
    assert all(starts == slots + 1 and last == rows for slots, starts, last, rows in seen)
    for name, prompt in prompts.items():
        alone = make_engine(folder)
        assert tokens_of(alone.generate([request(name, prompt)])[name]) == tokens_of(deltas[name])
        alone.close()
