"""Weight of a linear layer: what every kind of storage answers, and with which op."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import paddle

from actors.device.cpu import CpuDevice
from actors.layers.norm import RMSNorm
from gpu_ops.quantised.stored_rows import StoredRows

# The rows of arrays, one after the other, as one tensor of the device. On a GPU its content comes later, before the first step.
Put = Callable[[Sequence[np.ndarray]], paddle.Tensor]


class MatrixPart(NamedTuple):
    """Rows of W.

    Attributes:
        stored: the format of ``gpu_ops.quantised`` that they keep; "" where they are numbers of the device's type.
    """

    rows: int
    stored: str = ""


class Weight(ABC):
    """A matrix W [out_features, in_features] as the device holds it; whoever applies a layer does not know how.

    Attributes:
        num_bytes: in the device's memory, which a step reads once.
    """

    out_features: int
    in_features: int
    num_bytes: int

    @classmethod
    @abstractmethod
    def store(cls, device: CpuDevice, arrays: Sequence[np.ndarray | StoredRows], put: Put) -> Weight:
        """From rows of W, which ``put`` brings there; nothing is written to those any more. Arrays are of the device's type;
        either all rows keep a file's format or none do."""

    @abstractmethod
    def ready_tensors(self) -> dict[str, paddle.Tensor]:
        """All that it holds, by the ending of their names; tensors of the same content make it again (``from_ready``)."""

    @classmethod
    @abstractmethod
    def ready_shapes(
        cls, device: CpuDevice, parts: Sequence[MatrixPart], in_features: int
    ) -> dict[str, tuple[int, ...]]:
        """Of those tensors, where W consists of these parts."""

    @classmethod
    @abstractmethod
    def from_ready(cls, device: CpuDevice, tensors: Mapping[str, paddle.Tensor], out_features: int) -> Weight:
        """Over the memory of ``tensors``, which have the content of ``ready_tensors`` of such a weight."""

    @abstractmethod
    def linear(self, x: paddle.Tensor, bias: paddle.Tensor | None, float32_output: bool) -> paddle.Tensor:
        """x [T, in_features] W^T + bias -> [T, out_features]; on a GPU float32 (logits) where asked for."""

    @property
    def fused_block_weight(self) -> paddle.Tensor | None:
        """The tensor as ``gpu_ops.fused_layers`` reads it, or None where that op does not know this kind."""
        return None

    @property
    def has_small_batch(self) -> bool:
        """Whether the two small-batch products below exist for this kind."""
        return False

    def small_batch_linear(
        self, x: paddle.Tensor, bias: paddle.Tensor | None, norm: RMSNorm | None, swiglu: bool
    ) -> paddle.Tensor:
        """norm(x) W^T + bias of a few rows on a GPU, and ``swiglu`` of that."""
        raise NotImplementedError(f"{type(self).__name__} has no small-batch product")

    def add_small_batch_linear(self, x: paddle.Tensor, residual: paddle.Tensor, bias: paddle.Tensor | None) -> None:
        """residual += x W^T + bias of a few rows on a GPU, in place."""
        raise NotImplementedError(f"{type(self).__name__} has no small-batch product")

    def embedding(self, ids: paddle.Tensor) -> paddle.Tensor:
        """Rows of W, as an embedding table: ids int64 [T] -> [T, in_features]."""
        raise NotImplementedError(f"{type(self).__name__} is no embedding table")
