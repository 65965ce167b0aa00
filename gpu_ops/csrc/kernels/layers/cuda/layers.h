// Layers between the matmuls on the GPU. Arrays are dense, rows are multiples of 8 elements and 16-byte aligned; a row's
// result depends on that row alone.
#pragma once
#include "kernels/device/cuda/device.h"

namespace bireme {

// x [rows, hidden], weight [hidden] -> out [rows, hidden]: x / sqrt(mean(x^2) + eps) * weight.
void rms_norm_cuda(Half type, const void* x, const void* weight, float eps, int64_t rows, int64_t hidden, void* out,
                   Stream stream);

// residual [rows, hidden] += x, then out = rms_norm(residual). The norm reads the sum before it is rounded.
void add_rms_norm_cuda(Half type, const void* x, void* residual, const void* weight, float eps, int64_t rows, int64_t hidden,
                       void* out, Stream stream);

// residual [rows, hidden] += rms_norm(x). The norm is not rounded before it is added.
void rms_norm_add_cuda(Half type, const void* x, void* residual, const void* weight, float eps, int64_t rows, int64_t hidden,
                       Stream stream);

// Norms every query and key head of qkv [rows, (q_heads + 2 * kv_heads) * head_dim] in place; head_dim up to 256.
void qk_norm_cuda(Half type, void* qkv, const void* q_weight, const void* k_weight, float eps, int64_t rows, int64_t q_heads,
                  int64_t kv_heads, int64_t head_dim, Stream stream);

// Norms the queries of each row of qkv [rows, q_width + 2 * kv_width] together and its keys together, in place; weights are
// [q_width] and [kv_width].
void projection_norm_cuda(Half type, void* qkv, const void* q_weight, const void* k_weight, float eps, int64_t rows,
                          int64_t q_width, int64_t kv_width, Stream stream);

// gate_up [rows, 2 * inner] -> out [rows, inner]: g / (1 + e^-g) * u, g the first half of the row, u the second.
void swiglu_cuda(Half type, const void* gate_up, int64_t rows, int64_t inner, void* out, Stream stream);

// out[r] = table[ids[r]] of `width` 2-byte elements; an id outside [0, table_rows) gives zeros.
void gather_rows_cuda(const void* table, int64_t table_rows, int64_t width, const int64_t* ids, int64_t rows, void* out,
                      Stream stream);
void gather_rows_cuda(const void* table, int64_t table_rows, int64_t width, const int32_t* ids, int64_t rows, void* out,
                      Stream stream);

}  // namespace bireme
