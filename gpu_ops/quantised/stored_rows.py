"""Rows of a weight as a model file stores them: blocks of few bits, in the formats of ggml."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

BLOCK_INPUTS = 32


@dataclass(frozen=True, slots=True)
class BlockType:
    """A format of blocks.

    Attributes:
        type_id: ggml's number.
        block_bytes: of a block in a file.
        bits: of a quant; 16 for what is a number by itself.
        has_minimum: 32 inputs have a minimum beside their scale.
        block_inputs: of a block in a file; 1 of numbers; with more than 32 scale and minimum are one of the block times a
            whole number, and without a minimum there are two scales, of 16 inputs each.
    """

    type_id: int
    block_bytes: int
    bits: int
    has_minimum: bool
    block_inputs: int = BLOCK_INPUTS

    @property
    def has_factors(self) -> bool:
        return self.block_inputs > BLOCK_INPUTS

    @property
    def is_dense(self) -> bool:
        """Whether it is numbers without scales."""
        return self.bits == 16

    @property
    def record_blocks(self) -> int:
        """How many blocks of 32 inputs a record of a panel has, which share scale and minimum."""
        return max(1, self.block_inputs // BLOCK_INPUTS)

    @property
    def head_bytes(self) -> int:
        """Scales and minima of a record of 32 output columns."""
        return 0 if self.is_dense else 32 * (4 if self.has_minimum else 2)

    @property
    def record_bytes(self) -> int:
        """Of 32 output columns in a panel."""
        return self.head_bytes + self.record_blocks * 32 * ((2 if self.has_factors else 0) + 4 * self.bits)


BLOCK_TYPES = {
    "Q4_0": BlockType(2, 18, 4, False),
    "Q4_1": BlockType(3, 20, 4, True),
    "Q5_0": BlockType(6, 22, 5, False),
    "Q5_1": BlockType(7, 24, 5, True),
    "Q8_0": BlockType(8, 34, 8, False),
    "Q4_K": BlockType(12, 144, 4, True, 256),
    "Q5_K": BlockType(13, 176, 5, True, 256),
    "Q6_K": BlockType(14, 210, 6, False, 256),
    "IQ4_NL": BlockType(20, 18, 4, False),
    "F16": BlockType(1, 2, 16, False, 1),
    "BF16": BlockType(30, 2, 16, False, 1),
}


@dataclass(frozen=True, slots=True)
class StoredRows:
    """A matrix [out_features, in_features].

    Attributes:
        kind: a key of BLOCK_TYPES.
        blocks: uint8 [out_features, bytes of a row].
        factor: on every number.
    """

    kind: str
    blocks: np.ndarray
    factor: float = 1.0

    ndim = 2

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def shape(self) -> tuple[int, int]:
        block_type = BLOCK_TYPES[self.kind]
        return len(self.blocks), self.blocks.shape[1] // block_type.block_bytes * block_type.block_inputs

    @property
    def nbytes(self) -> int:
        return self.blocks.nbytes

    def with_blocks(self, blocks: np.ndarray) -> StoredRows:
        """The same of other rows."""
        return replace(self, blocks=blocks)

    def expanded(self) -> np.ndarray:
        """As float32 [out_features, in_features]."""
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        values = dequantize(self.blocks, GGMLQuantizationType(BLOCK_TYPES[self.kind].type_id))
        return values if self.factor == 1 else values * np.float32(self.factor)
