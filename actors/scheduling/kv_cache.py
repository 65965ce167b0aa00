"""Paged KV-cache bookkeeping: which block belongs to whom. Plain Python over integers; the tensors live with the runner.

A block is free (never used or worthless), cached (nobody uses it, but its hash is known and it can be hit again), or owned
(reference count of at least one; shared prefixes count several). Cached blocks are evicted least recently used first.
Concept: vLLM's automatic prefix caching.

A freed block may be handed out again at once: only work that comes later on the same device stream can touch it.
"""

from __future__ import annotations

import bisect
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

from cluster.block_hash import BlockHash


class KVCacheError(RuntimeError):
    """An invariant of the block accounting is broken: a bug, never a client's fault."""


class KVCache:
    """Owner of the block ids ``0 .. num_blocks - 1``.

    Args:
        num_blocks: blocks in the pool.
        block_size: tokens in a block.
        enable_prefix_caching: keep freed blocks that have a hash until their space is needed.
    """

    def __init__(self, num_blocks: int, block_size: int, enable_prefix_caching: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self._free = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._refs = [0] * num_blocks
        self._hash_of: list[BlockHash | None] = [None] * num_blocks
        self._block_of: dict[BlockHash, int] = {}

    @property
    def num_available(self) -> int:
        """Blocks that can be allocated now: free ones, and cached ones that would be evicted."""
        return len(self._free) + len(self._cached)

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that ``num_tokens`` positions occupy."""
        return -(-num_tokens // self.block_size)

    def match_prefix(self, hashes: Iterable[BlockHash]) -> list[int]:
        """Blocks of the longest cached or shared prefix; take them with ``acquire`` before anything is allocated."""
        blocks: list[int] = []
        if self.enable_prefix_caching:
            for block_hash in hashes:
                block = self._block_of.get(block_hash)
                if block is None:
                    break
                blocks.append(block)
        return blocks

    def num_cached(self, hashes: Sequence[BlockHash]) -> int:
        """About how many blocks ``match_prefix`` would find, for plans: a look at a few of them, not at each. Blocks are evicted
        from the end, so that a known one mostly means that all before it are known."""
        if not self.enable_prefix_caching:
            return 0
        return bisect.bisect_left(hashes, True, key=lambda block_hash: block_hash not in self._block_of)

    def num_available_after(self, blocks: Iterable[int]) -> int:
        """``num_available`` once ``blocks`` (a matched prefix) have been acquired."""
        return self.num_available - sum(self._refs[block] == 0 for block in blocks)

    def acquire(self, blocks: Iterable[int]) -> None:
        """Add one owner to each of ``blocks``."""
        for block in blocks:
            if self._refs[block] == 0:
                del self._cached[block]
            self._refs[block] += 1

    def can_allocate(self, count: int) -> bool:
        return count <= self.num_available

    def allocate(self, count: int) -> list[int]:
        """Hand out ``count`` blocks with one owner each, evicting cached ones if need be."""
        if not self.can_allocate(count):
            raise KVCacheError(f"asked for {count} blocks, {self.num_available} are available")
        blocks = []
        for _ in range(count):
            if self._free:
                block = self._free.pop()
            else:
                block, _ = self._cached.popitem(last=False)
                self._forget(block)
            self._refs[block] = 1
            blocks.append(block)
        return blocks

    def release(self, blocks: Sequence[int]) -> None:
        """Drop one owner of each block. The end of a sequence becomes evictable first, its shared beginning last."""
        for block in reversed(blocks):
            if self._refs[block] <= 0:
                raise KVCacheError(f"block {block} was released more often than acquired")
            self._refs[block] -= 1
            if self._refs[block] == 0:
                if self._hash_of[block] is not None:
                    self._cached[block] = None
                else:
                    self._free.append(block)

    def register(self, block: int, block_hash: BlockHash) -> None:
        """Make an owned, full block findable. A block with the same content that is already known stays the known one."""
        if self.enable_prefix_caching and self._hash_of[block] is None and block_hash not in self._block_of:
            self._hash_of[block] = block_hash
            self._block_of[block_hash] = block

    def clear_cached(self) -> None:
        """Forget every cached block that nobody owns (weights changed, or a test wants a cold cache)."""
        for block in self._cached:
            self._forget(block)
            self._free.append(block)
        self._cached.clear()

    def _forget(self, block: int) -> None:
        block_hash = self._hash_of[block]
        if block_hash is not None:
            del self._block_of[block_hash]
            self._hash_of[block] = None

    def check_integrity(self, owners: Iterable[Sequence[int]]) -> None:
        """Raise KVCacheError unless free + cached + owned = all and reference counts equal what ``owners`` hold."""
        held = Counter(block for blocks in owners for block in blocks)
        for block, count in enumerate(self._refs):
            if count != held[block]:
                raise KVCacheError(f"block {block} has {count} references, {held[block]} owners")
        owned = sum(count > 0 for count in self._refs)
        if len(self._free) + len(self._cached) + owned != self.num_blocks:
            raise KVCacheError(
                f"{len(self._free)} free + {len(self._cached)} cached + {owned} owned != {self.num_blocks}"
            )
        if len(set(self._free)) != len(self._free) or any(self._refs[b] for b in [*self._free, *self._cached]):
            raise KVCacheError("a block is free twice, or free and owned")
        for block_hash, block in self._block_of.items():
            if self._hash_of[block] != block_hash:
                raise KVCacheError(f"hash table and block {block} disagree")
        for block in self._cached:
            if self._hash_of[block] is None:
                raise KVCacheError(f"block {block} is cached without a hash")
