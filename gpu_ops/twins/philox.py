"""Philox4x32-10 (Salmon et al., SC 2011), the counter-based generator behind `sample`."""

from __future__ import annotations

_MASK = 0xFFFFFFFF


def philox4x32_10(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Four random 32-bit words of a 128-bit counter and a 64-bit key."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & _MASK, (a >> 32) ^ c3 ^ k1, a & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return c0, c1, c2, c3


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) with 24 bits, a pure function of (int64 seed, position)."""
    key = (seed & _MASK, (seed >> 32) & _MASK)
    return (philox4x32_10((position & _MASK, (position >> 32) & _MASK, 0, 0), key)[0] >> 8) / 2**24
