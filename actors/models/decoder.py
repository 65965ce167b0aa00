"""The decoder-only transformer that all families of the registry share: they differ by switches of ``ModelConfig`` (attention
bias, tied head, multipliers) and by the kind of their layers, not by code.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import paddle

from actors.device.cpu import CpuDevice
from actors.device.large_copies import Upload
from actors.layers.attention import Attention, LayerCache
from actors.layers.batch_rows import BatchRows
from actors.layers.linear import Linear
from actors.layers.norm import HeadNorm, ProjectionNorm, RMSNorm
from actors.layers.weights.dense import DenseWeight
from actors.layers.weights.quantised import QuantisedWeight
from actors.layers.weights.weight import MatrixPart, Put, Weight
from actors.models.config import ModelConfig
from actors.models.layer import Layer
from actors.models.post_norm_layer import PostNormLayer
from actors.models.pre_norm_layer import PreNormLayer
from cluster.process.cache import Progress
from gpu_ops import decode_ops
from gpu_ops.fused_layers import FusedLayer, fused_layers
from gpu_ops.kernel_limits import MAX_SMALL_BATCH_ROWS
from gpu_ops.kv_cache import kv_cache_shape
from gpu_ops.quantised.stored_rows import StoredRows

__all__ = ["BatchRows", "Decoder", "largest_small_batch"]

_LAYERS = {"before": PreNormLayer, "behind": PostNormLayer}
# A layer up to this size is bound by launches rather than by memory, so that folding layers together pays for more rows.
_SMALL_LAYER_BYTES = 16 << 20
_SMALL_BATCH, _SMALL_BATCH_OF_SMALL_LAYERS = 8, 32
# To launch a layer's kernels one by one takes 0.15 ms where it was measured; what a GPU reads and computes in a second.
_LAUNCH_SECONDS_A_LAYER, _BYTES_PER_S, _OPERATIONS_PER_S = 1e-4, 3e12, 6e14


def largest_small_batch(layer_bytes: int, most_in_features: int) -> int:
    """Most decoding rows for which this GPU's folded matmuls are faster than cuBLAS's, where those of a layer take so many
    bytes and inputs."""
    if layer_bytes > _SMALL_LAYER_BYTES:
        return _SMALL_BATCH
    return MAX_SMALL_BATCH_ROWS if decode_ops.has_small_linear(most_in_features) else _SMALL_BATCH_OF_SMALL_LAYERS


class Decoder:
    """Weights and forward pass in the device's type, one copy in memory.

    Args:
        config: the architecture.
        max_model_len: rows of the rotary table.
        device: where it computes; default the CPU.
        weight_kind: how matrices of the device's type are held. Those that keep a file's format are quantised weights where
            all matrices of a matmul do; else they are expanded.
    """

    def __init__(
        self,
        config: ModelConfig,
        max_model_len: int,
        device: CpuDevice | None = None,
        weight_kind: type[Weight] = DenseWeight,
    ) -> None:
        self.config = config
        self.weight_kind = weight_kind
        self.device = device or CpuDevice()
        self.cos_sin = self.device.tensor(config.rope_table(max_model_len))
        self.layers = [self._layer() for _ in range(config.num_layers)]
        self.layers_done = self.device.progress_cell()
        self.final_norm: RMSNorm
        self.embed: Linear
        self.lm_head: Linear

    def _layer(self) -> Layer:
        config = self.config
        kind = ProjectionNorm if config.qk_norm_over_projection else HeadNorm
        heads, qk_norm = (config.num_heads, config.num_kv_heads), kind() if config.qk_norm else None
        return _LAYERS[config.norms](Attention(self.device, heads, config.score_scale, self.cos_sin, qk_norm))

    def load_weights(
        self, weights: Iterator[tuple[str, np.ndarray | StoredRows]], progress: Progress | None = None
    ) -> None:
        """Take pairs of a Hugging Face name and an array of the device's type, or a matrix as a file stores it, in any order;
        fused parts wait only for their partners."""
        if self.device.is_gpu:
            with Upload(self.device) as upload:
                self._load_weights(weights, upload.joined, progress)
                upload.finish()
        else:
            self._load_weights(weights, self.device.joined, progress)

    def _load_weights(
        self, weights: Iterator[tuple[str, np.ndarray | StoredRows]], put: Put, progress: Progress | None
    ) -> None:
        parts: dict[str, np.ndarray | StoredRows] = {}
        owners = {
            name: (index, attribute, names)
            for index in range(len(self.layers))
            for attribute, names in self._layer_parameters(index).items()
            for name in names
        }
        num_left = [len(self._layer_parameters(index)) for index in range(len(self.layers))]
        for name, array in weights:
            if name == "model.embed_tokens.weight":
                self.embed = self._linear([array], put)
            elif name == "lm_head.weight":
                self.lm_head = self._linear([array], put)
            elif name == "model.norm.weight":
                self.final_norm = self._norm([array], self.config.stream_eps)
            else:
                index, attribute, names = owners[name]
                parts[name] = array
                if all(member in parts for member in names):
                    arrays = [parts.pop(member) for member in names]
                    owner = functools.reduce(getattr, attribute.split(".")[:-1], self.layers[index])
                    setattr(owner, attribute.rpartition(".")[2], self._parameter(attribute, arrays, put))
                    num_left[index] -= 1
                    if progress and num_left[index] == 0:
                        progress("layers", sum(left == 0 for left in num_left), len(self.layers))
        self._tie_head()

    def ready_tensors(self) -> dict[str, paddle.Tensor]:
        """Every parameter as the ops read it, for ``take_ready_tensors``."""
        tensors = {}
        for path in self._parameters():
            parameter = self._find(path)
            if isinstance(parameter, RMSNorm):
                tensors[path] = parameter.weight
            else:
                tensors |= {path + ending: tensor for ending, tensor in parameter.ready_tensors().items()}
        return tensors

    def take_ready_tensors(
        self,
        tensors: Mapping[str, paddle.Tensor],
        shapes: Mapping[str, tuple[int, ...]],
        stored: Mapping[str, str] | None = None,
    ) -> None:
        """Instead of ``load_weights``: compute with the memory of ``tensors``, which may be filled until the first step.

        Args:
            shapes: of the model's tensors by Hugging Face name.
            stored: the formats of those that keep the file's.
        Raises:
            ValueError: the tensors are not those of this configuration; nothing was taken.
        """
        expected, linears = self._ready_shapes(shapes, stored or {})
        if expected != {name: tuple(tensor.shape) for name, tensor in tensors.items()}:
            raise ValueError("its arrays are not those of the model")
        for path in self._parameters():
            if path in linears:
                rows, endings, kind = linears[path]
                own = {ending: tensors[path + ending] for ending in endings}
                self._set(path, Linear.from_ready(self.device, kind, own, rows))
            else:
                self._set(path, RMSNorm(tensors[path], self._eps(path)))
        self._tie_head()

    def _ready_shapes(
        self, shapes: Mapping[str, tuple[int, ...]], stored: Mapping[str, str]
    ) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, list[str], type[Weight]]]]:
        """Of ``ready_tensors``; and for each linear layer its number of output rows, the endings of its tensors and the kind of
        its weight."""
        expected: dict[str, tuple[int, ...]] = {}
        linears: dict[str, tuple[int, list[str], type[Weight]]] = {}
        for path, names in self._parameters().items():
            matrices = [name for name in names if len(shapes[name]) == 2]
            num_biases = sum(shapes[name][0] for name in names if len(shapes[name]) == 1)
            if not matrices:
                expected[path] = shapes[names[0]]
                continue
            parts = [MatrixPart(shapes[name][0], stored.get(name, "")) for name in matrices]
            kind = QuantisedWeight if all(part.stored for part in parts) else self.weight_kind
            wanted = Linear.ready_shapes(self.device, kind, parts, shapes[matrices[0]][1], num_biases)
            linears[path] = sum(part.rows for part in parts), list(wanted), kind
            expected |= {path + ending: shape for ending, shape in wanted.items()}
        return expected, linears

    def _parameters(self) -> dict[str, list[str]]:
        """Path of each parameter from here to the Hugging Face names that it is made of."""
        found = {"embed": ["model.embed_tokens.weight"], "final_norm": ["model.norm.weight"]}
        if not self.config.tie_word_embeddings:
            found["lm_head"] = ["lm_head.weight"]
        for index in range(len(self.layers)):
            for attribute, names in self._layer_parameters(index).items():
                found[f"layers.{index}.{attribute}"] = names
        return found

    def _find(self, path: str) -> Any:
        owner: Any = self
        for part in path.split("."):
            owner = owner[int(part)] if part.isdigit() else getattr(owner, part)
        return owner

    def _set(self, path: str, parameter: Linear | RMSNorm) -> None:
        owner, _, attribute = path.rpartition(".")
        setattr(self._find(owner) if owner else self, attribute, parameter)

    def _tie_head(self) -> None:
        if self.config.tie_word_embeddings:
            self.lm_head = self.embed

    def _eps(self, path: str) -> float:
        return self.config.rms_norm_eps if "qk_norm" in path else self.config.stream_eps

    def _parameter(self, attribute: str, arrays: list[np.ndarray | StoredRows], put: Put) -> Linear | RMSNorm:
        if arrays[0].ndim == 2:
            return self._linear(arrays, put)
        return self._norm(arrays, self._eps(attribute))

    def _norm(self, arrays: Sequence[np.ndarray | StoredRows], eps: float) -> RMSNorm:
        return RMSNorm(self.device.joined(_vectors(arrays)), eps)

    def _linear(self, arrays: list[np.ndarray | StoredRows], put: Put) -> Linear:
        """Weights and then biases of projections that are one matmul here, in order of output rows."""
        weights, biases = [array for array in arrays if array.ndim == 2], _vectors(arrays)
        kind = QuantisedWeight if all(isinstance(weight, StoredRows) for weight in weights) else self.weight_kind
        if kind is not QuantisedWeight:
            weights = [weight.expanded() if isinstance(weight, StoredRows) else weight for weight in weights]
        return Linear(kind.store(self.device, weights, put), self.device.joined(biases) if biases else None)

    def _layer_parameters(self, index: int) -> dict[str, list[str]]:
        """Attribute of a layer to the names it is made of: weights in order of output rows, then biases."""
        config, prefix = self.config, f"model.layers.{index}."

        def linear(modules: list[str], has_bias: bool) -> list[str]:
            kinds = ("weight", "bias") if has_bias else ("weight",)
            return [f"{prefix}{module}_proj.{kind}" for kind in kinds for module in modules]

        names = {
            **{norm: [f"{prefix}{module}.weight"] for norm, module in _LAYERS[config.norms].norm_names.items()},
            "attention.qkv": linear(["self_attn.q", "self_attn.k", "self_attn.v"], config.attention_bias),
            "attention.o": linear(["self_attn.o"], config.attention_out_bias),
            "mlp.gate_up": linear(["mlp.gate", "mlp.up"], config.mlp_bias),
            "mlp.down": linear(["mlp.down"], config.mlp_bias),
        }
        if config.qk_norm:
            names |= {
                "attention.qk_norm.q": [prefix + "self_attn.q_norm.weight"],
                "attention.qk_norm.k": [prefix + "self_attn.k_norm.weight"],
            }
        return names

    def allocate_kv_cache(self, num_blocks: int, block_size: int) -> list[LayerCache]:
        """One (k, v) pair of cache tensors per layer."""
        config, device = self.config, self.device
        k_shape, v_shape = kv_cache_shape(
            num_blocks, block_size, config.num_kv_heads, config.head_dim, device.kv_cache_dtype, device.is_gpu
        )
        return [(device.kv_cache(k_shape), device.kv_cache(v_shape)) for _ in self.layers]

    def forward(self, rows: BatchRows, kv_cache: list[LayerCache]) -> paddle.Tensor:
        """Hidden states after the final norm, [T, hidden_size]; keys and values of the rows enter the cache."""
        if self.device.is_gpu and rows.max_rows_per_slot == 1 and rows.positions.shape[0] <= self.max_small_batch:
            return self.forward_small_batch(rows, kv_cache)
        return (self.forward_fused if self._can_fuse else self.forward_op_by_op)(rows, kv_cache)

    @functools.cached_property
    def _can_fuse(self) -> bool:
        return all(layer.can_fuse for layer in self.layers)

    @functools.cached_property
    def max_small_batch(self) -> int:
        """Most rows of a decoding step that the GPU computes with ``gpu_ops.decode_ops``'s matmuls rather than cuBLAS's.

        The two differ in bits, so ``batch_invariant`` keeps to one; the folded norm needs bfloat16's range.
        """
        if self.device.dtype != "bfloat16" or self.device.batch_invariant:
            return 0
        if not all(layer.has_small_batch for layer in self.layers):
            return 0
        weights = [linear.weight for linear in self.layers[0].linears]
        return largest_small_batch(
            sum(weight.num_bytes for weight in weights), max(weight.in_features for weight in weights)
        )

    @functools.cached_property
    def max_launch_bound_rows(self) -> int:
        """Most rows of a step that a GPU computes faster than the host launches its kernels one by one; 0 for none."""
        weight_bytes = sum(linear.weight.num_bytes for layer in self.layers for linear in layer.linears)
        launching_s = _LAUNCH_SECONDS_A_LAYER * len(self.layers)
        if weight_bytes > launching_s * _BYTES_PER_S:
            return 0
        # A weight of two bytes is multiplied and added, for each row.
        return int(launching_s * _OPERATIONS_PER_S / weight_bytes)

    def forward_fused(self, rows: BatchRows, kv_cache: list[LayerCache]) -> paddle.Tensor:
        """One op for all layers."""
        first = self.layers[0]
        assert first.input_norm is not None
        return fused_layers(
            self.embed.weight.embedding(rows.ids),
            first.input_norm.weight,
            self._fused_layers,
            kv_cache,
            cos_sin=self.cos_sin,
            positions=rows.positions,
            batch_id_per_token=rows.slots,
            block_tables=rows.block_tables,
            q_heads=self.config.num_heads,
            kv_heads=self.config.num_kv_heads,
            eps=first.input_norm.eps,
            scale=self.config.score_scale,
            cu_seqlens_q=rows.cu_seqlens_q,
            max_rows_per_slot=rows.max_rows_per_slot,
            batch_invariant=self.device.batch_invariant,
            layers_done=None if self.layers_done is None else self.layers_done.tensor,
        )

    @functools.cached_property
    def _fused_layers(self) -> list[FusedLayer]:
        return [layer.fused(next_norm) for layer, next_norm in zip(self.layers, self._next_norms(), strict=True)]

    def forward_small_batch(self, rows: BatchRows, kv_cache: list[LayerCache]) -> paddle.Tensor:
        """A step of at most ``max_small_batch`` decoding rows on a GPU."""
        residual = self.embed.weight.embedding(rows.ids)
        for layer, cache in zip(self.layers, kv_cache, strict=True):
            layer.small_batch(residual, rows, cache)
        return self.final_norm(residual)

    def forward_op_by_op(self, rows: BatchRows, kv_cache: list[LayerCache]) -> paddle.Tensor:
        """The plain twin of the fused blocks: one op after the other, the same bits. The way of layers that cannot be fused."""
        residual = self.embed.weight.embedding(rows.ids)
        hidden = self._input_of_layers(residual)
        for layer, cache, next_norm in zip(self.layers, kv_cache, self._next_norms(), strict=True):
            hidden, residual = layer.op_by_op(hidden, residual, next_norm, rows, cache)
            if self.layers_done is not None:
                self.layers_done.array[0] += 1
        return hidden

    def _input_of_layers(self, residual: paddle.Tensor) -> paddle.Tensor:
        norm = self.layers[0].input_norm
        return residual if norm is None else norm(residual)

    def _next_norms(self) -> list[RMSNorm | None]:
        """The norm that follows each layer: the next layer's, and the final one."""
        return [*(layer.input_norm for layer in self.layers[1:]), self.final_norm]

    def compute_logits(self, hidden: paddle.Tensor) -> paddle.Tensor:
        """Logits float32 [T, vocab_size]; give it every row for all-position logits, the last ones for sampling."""
        return self.lm_head(hidden, float32_output=self.device.is_gpu)


def _vectors(arrays: Sequence[np.ndarray | StoredRows]) -> list[np.ndarray]:
    return [array for array in arrays if isinstance(array, np.ndarray) and array.ndim == 1]
