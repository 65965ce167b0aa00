#include "kernels/linear/cuda/small_batch_linear.h"

#include "kernels/device/cuda/chained_launch.cuh"
#include "kernels/device/cuda/half_pair.cuh"
#include "kernels/device/cuda/mma.cuh"
#include "kernels/linear/cuda/small_linear.h"

namespace bireme {
namespace {

constexpr int kOutputs = 16;  // weight rows of a block: with swiglu 8 of the gate and their 8 of up
constexpr int kWarps = 8;     // each sums over its own part of in_features
constexpr int kSpan = 32;     // elements of in_features of one step: 16 bytes a thread and row

__device__ inline uint4 load_weights(const void* from) {
  uint4 value;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(from));
  return value;
}

// kTiles tiles of 8 rows of x; kAhead steps whose loads are under way together.
// The norm's factor 1 / rms belongs to a row, so it is applied to the row's sums.
template <typename T, int kTiles, bool kNorm, int kAhead>
__global__ void __launch_bounds__(kWarps* kWarp, 2) small_batch_kernel(SmallBatchLinear l) {
  __shared__ float sums[kWarps][kOutputs][kTiles * 8 + 1];
  __shared__ float row_squares[kWarps][kTiles * 8];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, line = lane / 4, quad = lane % 4;
  const int outputs = l.swiglu ? l.out_features / 2 : l.out_features, block_outputs = l.swiglu ? kOutputs / 2 : kOutputs;
  const int first_row = blockIdx.y * kTiles * 8, first_output = blockIdx.x * block_outputs, step_outputs = l.swiglu ? outputs : 8;
  // Lines beyond the last output compute the last one again, and nobody stores it.
  const int upper = min(first_output + line, outputs - 1), lower = min(upper + step_outputs, l.out_features - 1);
  const int steps = (l.in_features + kSpan - 1) / kSpan, begin = steps * warp / kWarps, end = steps * (warp + 1) / kWarps;
  const T* weight = static_cast<const T*>(l.weight);
  const T *upper_at = weight + int64_t{upper} * l.in_features, *lower_at = weight + int64_t{lower} * l.in_features;
  const T *x = static_cast<const T*>(l.x), *gain_at = static_cast<const T*>(l.norm_weight);
  const uint4 nothing = make_uint4(0, 0, 0, 0);

  uint4 w_upper[kAhead], w_lower[kAhead], inputs[kAhead][kTiles], gain[kAhead];
  const auto column = [&](int step) { return step * kSpan + quad * 8; };
  const auto present = [&](int step) { return step < end && column(step) < l.in_features; };
  const auto load_constants = [&](int slot, int step) {
    const bool any = present(step);
    w_upper[slot] = any ? load_weights(upper_at + column(step)) : nothing;
    w_lower[slot] = any ? load_weights(lower_at + column(step)) : nothing;
    if (kNorm) gain[slot] = any ? *reinterpret_cast<const uint4*>(gain_at + column(step)) : nothing;
  };
  const auto load_inputs = [&](int slot, int step) {
    const bool any = present(step);
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const int row = first_row + t * 8 + line;
      const T* from = x + int64_t{row} * l.in_features + column(step);
      inputs[slot][t] = any && row < l.rows ? *reinterpret_cast<const uint4*>(from) : nothing;
    }
  };
#pragma unroll
  for (int i = 0; i < kAhead; ++i) load_constants(i, begin + i);
  wait_for_predecessor();
  start_successor();
#pragma unroll
  for (int i = 0; i < kAhead; ++i) load_inputs(i, begin + i);

  float sum[kTiles][4] = {}, squares[kTiles] = {};
  for (int step = begin; step < end; step += kAhead) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        uint4 in = inputs[i][t];
        if (kNorm) {
          in.x = times_gain<T>(in.x, gain[i].x, squares[t]);
          in.y = times_gain<T>(in.y, gain[i].y, squares[t]);
          in.z = times_gain<T>(in.z, gain[i].z, squares[t]);
          in.w = times_gain<T>(in.w, gain[i].w, squares[t]);
        }
        mma_32<T>(sum[t], w_upper[i], w_lower[i], in);
      }
      load_constants(i, step + kAhead + i);
      load_inputs(i, step + kAhead + i);
    }
  }

#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[warp][line + i / 2 * 8][t * 8 + quad * 2 + i % 2] = sum[t][i];
    if (kNorm) {
      float all = squares[t];
      all += __shfl_xor_sync(kAllLanes, all, 1);
      all += __shfl_xor_sync(kAllLanes, all, 2);
      if (quad == 0) row_squares[warp][t * 8 + line] = all;
    }
  }
  __syncthreads();
  const auto total = [&](int line, int output) {
    float all = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) all += sums[w][output][line];
    if (kNorm) {
      float square = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) square += row_squares[w][line];
      all *= rsqrtf(square / l.in_features + l.eps);
    }
    const int of_up = l.swiglu && output >= 8 ? outputs - 8 : 0;  // where the weight rows of up begin
    if (l.bias) all += to_float(static_cast<const T*>(l.bias)[first_output + output + of_up]);
    return all;
  };
  for (int item = threadIdx.x; item < kTiles * 8 * block_outputs; item += blockDim.x) {
    const int line = item / block_outputs, row = first_row + line, output = item % block_outputs;
    if (row >= l.rows || first_output + output >= outputs) continue;
    const int64_t at = int64_t{row} * outputs + first_output + output;
    const float value = total(line, output);
    if (l.swiglu) {
      const float gate = to_float(from_float<T>(value)), up = to_float(from_float<T>(total(line, output + 8)));
      static_cast<T*>(l.y)[at] = from_float<T>(gate / (1 + __expf(-gate)) * up);
    } else if (l.residual) {
      T* residual = static_cast<T*>(l.residual) + at;
      *residual = from_float<T>(to_float(*residual) + to_float(from_float<T>(value)));
    } else if (l.float32_output) {
      static_cast<float*>(l.y)[at] = value;
    } else {
      static_cast<T*>(l.y)[at] = from_float<T>(value);
    }
  }
}

}  // namespace

void small_batch_linear_cuda(const SmallBatchLinear& l, Stream stream) {
  if (small_linear_cuda(l, stream)) return;
  const int outputs = l.swiglu ? l.out_features / 2 : l.out_features, block_outputs = l.swiglu ? kOutputs / 2 : kOutputs;
  with_half(l.type, [&](auto t) {
    using T = decltype(t);
    const auto launch = [&](auto kernel, int tiles) {
      const dim3 grid((outputs + block_outputs - 1) / block_outputs, (l.rows + tiles * 8 - 1) / (tiles * 8));
      launch_chained(kernel, grid, kWarps * kWarp, 0, stream, "small_batch_linear", l);
    };
    const bool is_short = l.in_features <= 4 * kSpan * kWarps;  // at most four steps a warp
    if (l.rows > 16) return launch(l.norm_weight ? small_batch_kernel<T, 4, true, 2> : small_batch_kernel<T, 4, false, 2>, 4);
    if (l.rows > 8) return launch(l.norm_weight ? small_batch_kernel<T, 2, true, 3> : small_batch_kernel<T, 2, false, 4>, 2);
    if (l.norm_weight) return launch(small_batch_kernel<T, 1, true, 4>, 1);
    launch(is_short ? small_batch_kernel<T, 1, false, 4> : small_batch_kernel<T, 1, false, 6>, 1);
  });
}

}  // namespace bireme
