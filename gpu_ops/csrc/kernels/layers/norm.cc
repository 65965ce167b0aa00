#include "kernels/layers/norm.h"

#include <algorithm>
#include <cmath>

#include "kernels/device/thread_pool.h"
#include "kernels/device/vec16.h"

namespace bireme {
namespace {

// Floats worth handing to another thread when each costs a load or two and little arithmetic.
constexpr int64_t kGrainFloats = 16 * 1024;

int64_t row_grain(int64_t width) { return std::max<int64_t>(1, kGrainFloats / std::max<int64_t>(width, 1)); }

// Calls body(offset, lanes) for each vector of a row; lanes < 16 only at its end.
template <typename Body>
BIREME_INLINE void each_vector(int64_t width, Body&& body) {
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) body(i, kLanes);
  if (i < width) body(i, static_cast<int>(width - i));
}

// Sum of squares: lane i adds elements i, i + 16, ... in order, then the lanes' tree.
float inverse_rms(const float* x, float eps, int64_t width) {
  Vec16 squares = zero();
  each_vector(width, [&](int64_t i, int lanes) {
    const Vec16 v = load_up_to(x + i, lanes);
    squares = fma(v, v, squares);
  });
  return 1.0f / std::sqrt(sum_lanes(squares) / static_cast<float>(width) + eps);
}

void norm_row(const float* x, const float* weight, float eps, int64_t width, float* out) {
  const Vec16 inverse = broadcast(inverse_rms(x, eps, width));
  each_vector(width, [&](int64_t i, int lanes) {
    store_up_to(out + i, load_up_to(x + i, lanes) * inverse * load_up_to(weight + i, lanes), lanes);
  });
}

}  // namespace

void rms_norm_cpu(const float* x, const float* weight, float eps, int64_t rows, int64_t hidden, float* out) {
  parallel_for(rows, row_grain(hidden), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) norm_row(x + t * hidden, weight, eps, hidden, out + t * hidden);
  });
}

void add_rms_norm_cpu(const float* x, float* residual, const float* weight, float eps, int64_t rows, int64_t hidden,
                      float* out) {
  parallel_for(rows, row_grain(hidden), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      float* sum = residual + t * hidden;
      each_vector(hidden, [&](int64_t i, int lanes) {
        store_up_to(sum + i, load_up_to(sum + i, lanes) + load_up_to(x + t * hidden + i, lanes), lanes);
      });
      norm_row(sum, weight, eps, hidden, out + t * hidden);
    }
  });
}

void rms_norm_add_cpu(const float* x, float* residual, const float* weight, float eps, int64_t rows, int64_t hidden) {
  parallel_for(rows, row_grain(hidden), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* row = x + t * hidden;
      float* sum = residual + t * hidden;
      const Vec16 inverse = broadcast(inverse_rms(row, eps, hidden));
      each_vector(hidden, [&](int64_t i, int lanes) {
        const Vec16 normed = load_up_to(row + i, lanes) * inverse * load_up_to(weight + i, lanes);
        store_up_to(sum + i, load_up_to(sum + i, lanes) + normed, lanes);
      });
    }
  });
}

void qk_norm_cpu(float* qkv, const float* q_weight, const float* k_weight, float eps, int64_t rows, int64_t q_heads,
                 int64_t kv_heads, int64_t head_dim) {
  const int64_t width = (q_heads + 2 * kv_heads) * head_dim;
  parallel_for(rows, row_grain(width), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t head = 0; head < q_heads + kv_heads; ++head) {
        float* x = qkv + t * width + head * head_dim;
        norm_row(x, head < q_heads ? q_weight : k_weight, eps, head_dim, x);
      }
    }
  });
}

void projection_norm_cpu(float* qkv, const float* q_weight, const float* k_weight, float eps, int64_t rows, int64_t q_width,
                         int64_t kv_width) {
  const int64_t width = q_width + 2 * kv_width;
  parallel_for(rows, row_grain(width), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      float* q = qkv + t * width;
      norm_row(q, q_weight, eps, q_width, q);
      norm_row(q + q_width, k_weight, eps, kv_width, q + q_width);
    }
  });
}

void swiglu_cpu(const float* gate_up, int64_t rows, int64_t inner, float* out) {
  parallel_for(rows, row_grain(4 * inner), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* gate = gate_up + t * 2 * inner;
      each_vector(inner, [&](int64_t i, int lanes) {
        const Vec16 g = load_up_to(gate + i, lanes), u = load_up_to(gate + inner + i, lanes);
        store_up_to(out + t * inner + i, g / (broadcast(1.0f) + exp(zero() - g)) * u, lanes);
      });
    }
  });
}

}  // namespace bireme
