// Root-mean-square norms and the gated activation: no Paddle headers. All arrays are dense float32.
#pragma once
#include <cstdint>

namespace bireme {

// x [rows, hidden], weight [hidden] -> out [rows, hidden]: x / sqrt(mean(x^2) + eps) * weight. `out` may be x.
void rms_norm_cpu(const float* x, const float* weight, float eps, int64_t rows, int64_t hidden, float* out);

// residual [rows, hidden] += x, then out = rms_norm(residual).
void add_rms_norm_cpu(const float* x, float* residual, const float* weight, float eps, int64_t rows, int64_t hidden,
                      float* out);

// residual [rows, hidden] += rms_norm(x).
void rms_norm_add_cpu(const float* x, float* residual, const float* weight, float eps, int64_t rows, int64_t hidden);

// Norms every query and key head of qkv [rows, (q_heads + 2 * kv_heads) * head_dim] in place; weights are [head_dim].
void qk_norm_cpu(float* qkv, const float* q_weight, const float* k_weight, float eps, int64_t rows, int64_t q_heads,
                 int64_t kv_heads, int64_t head_dim);

// Norms the queries of each row of qkv [rows, q_width + 2 * kv_width] together and its keys together, in place; weights are
// [q_width] and [kv_width].
void projection_norm_cpu(float* qkv, const float* q_weight, const float* k_weight, float eps, int64_t rows, int64_t q_width,
                         int64_t kv_width);

// gate_up [rows, 2 * inner] -> out [rows, inner]: g / (1 + e^-g) * u, g the first half of the row, u the second.
void swiglu_cpu(const float* gate_up, int64_t rows, int64_t inner, float* out);

}  // namespace bireme
