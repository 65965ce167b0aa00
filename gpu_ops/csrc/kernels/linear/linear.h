// y = x W^T with packed weights, and rows read back from them: no Paddle headers. All arrays are dense float32.
//
// Packed weights are panels of 32 output columns: packed[n / 32][k][n % 32], columns beyond N zero. A panel is one
// stream through memory, and a step in k is two full vectors.
#pragma once
#include <cstdint>

namespace bireme {

constexpr int64_t kPanelColumns = 32;

inline int64_t panel_count(int64_t out_features) { return (out_features + kPanelColumns - 1) / kPanelColumns; }

// w [out_features, in_features] -> packed [panel_count, in_features, 32].
void pack_weight_cpu(const float* w, int64_t out_features, int64_t in_features, float* packed);

// x [rows, in_features], bias [out_features] or null -> y [rows, out_features]. Element (t, n) is the chain
// fma(x[t, k], w[n, k], sum) over ascending k, started from the bias or 0: a function of row t alone.
void linear_cpu(const float* x, int64_t rows, int64_t in_features, const float* packed, int64_t out_features,
                const float* bias, float* y);

// Row ids[t] of the packed [vocab, hidden] matrix -> out [rows, hidden]; zeros where the id is not in [0, vocab).
void embedding_packed_cpu(const float* packed, const int64_t* ids, int64_t rows, int64_t vocab, int64_t hidden, float* out);

// The same from a plain table [vocab, hidden].
void embedding_table_cpu(const float* table, const int64_t* ids, int64_t rows, int64_t vocab, int64_t hidden, float* out);

}  // namespace bireme
