from __future__ import annotations

import pytest

from actors.engine_actor import RunnerActor
from cluster.config import EngineConfig
from tests.engines import write_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """Folder of the random two-layer model."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture
async def actor(tiny_model):
    """Without Ray: one asyncio loop drives it the way Ray would."""
    config = EngineConfig(
        model=str(tiny_model), load_format="dummy", max_num_seqs=4, max_num_batched_tokens=64, num_kv_blocks=64
    )
    made = RunnerActor(config, "engine-1")
    info = await made.start()
    assert info.engine_id == "engine-1" and info.vocab_size == 128
    yield made
    await made.shutdown()
