"""Hash chain over full KV blocks: equal hashes mean equal token history, in every process of the cluster.

The hash of a block covers its tokens and, through its parent, every token before them (vLLM's prefix caching). BLAKE2b
with a salt instead of Python's ``hash``: stable across processes, and a client that may not share cached prefixes gets
a key space of its own.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

BlockHash = bytes


def root_hash(salt: str = "") -> BlockHash:
    """The parent of a sequence's first block."""
    return hashlib.blake2b(salt.encode(), digest_size=16, person=b"bireme-kv-block").digest()


def hash_block(parent: BlockHash, token_ids: Sequence[int]) -> BlockHash:
    """Hash of one full block whose predecessor hashed to ``parent``; token ids fit int32."""
    return hashlib.blake2b(
        array("i", token_ids).tobytes(), digest_size=16, key=parent, person=b"bireme-kv-block"
    ).digest()


def hash_blocks(token_ids: Sequence[int], block_size: int, salt: str = "") -> list[BlockHash]:
    """Hashes of every full block of ``token_ids``; an incomplete last block has none."""
    parent, hashes = root_hash(salt), []
    for start in range(0, len(token_ids) - block_size + 1, block_size):
        parent = hash_block(parent, token_ids[start : start + block_size])
        hashes.append(parent)
    return hashes
