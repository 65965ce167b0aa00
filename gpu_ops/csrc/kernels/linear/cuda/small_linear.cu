// A block's weights lie in shared memory before its predecessor ends; what is left for then is one round of loads of x, products
// of registers, and the joining of the warps' sums. Each warp has its own part of in_features, each lane the weights that it
// has copied itself, so that nothing but the joining waits for other threads.
#include "kernels/linear/cuda/small_linear.h"

#include <algorithm>

#include "kernels/device/cuda/async_copy.cuh"
#include "kernels/device/cuda/chained_launch.cuh"
#include "kernels/device/cuda/device_limit.cuh"
#include "kernels/device/cuda/half_pair.cuh"
#include "kernels/device/cuda/mma.cuh"

namespace bireme {
namespace {

constexpr int kSpan = 32;  // elements of in_features of one step: 16 bytes a lane and row

// A block computes 16 * kOut weight rows (with swiglu half of them the gate's, half up's) for 8 * kRow rows of x; each of its
// warps takes kSteps steps.
template <int kOut, int kRow, int kSteps>
struct Tile {
  // Their sums and inputs lie in registers.
  static constexpr int kMaxWarps = kSteps == 2 || kOut * kRow > 8 ? 12 : 16;
  static constexpr int kRows = kRow * 8, kColumns = kOut * 16;
  static constexpr int kStride = kColumns + 4;  // of a row's sums: lanes that store together meet different banks
  // Sums take the place of a warp's weights, squares of its rows come behind.
  static constexpr int kWeightBytes = kSteps * kOut * 2 * kWarp * 16, kSumBytes = kRows * kStride * 4;
  static constexpr int kSquaresAt = kWeightBytes > kSumBytes ? kWeightBytes : kSumBytes;
  static constexpr int kWarpBytes = kSquaresAt + kRows * 4;
};

// Without the 1 the compiler saves registers and lets loads wait for each other.
template <typename T, int kOut, int kRow, int kSteps, bool kNorm>
__global__ void __launch_bounds__(Tile<kOut, kRow, kSteps>::kMaxWarps* kWarp, 1) small_kernel(SmallBatchLinear l) {
#if __CUDA_ARCH__ >= 900
  using S = Tile<kOut, kRow, kSteps>;
  extern __shared__ __align__(16) unsigned char shared[];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, line = lane / 4, quad = lane % 4, warps = blockDim.x / kWarp;
  const int outputs = l.swiglu ? l.out_features / 2 : l.out_features, block_outputs = l.swiglu ? S::kColumns / 2 : S::kColumns;
  const int first_row = blockIdx.y * S::kRows, first_output = blockIdx.x * block_outputs;
  const int first_column = warp * kSteps * kSpan + quad * 8;
  const auto present = [&](int step) { return first_column + step * kSpan < l.in_features; };
  unsigned char* own = shared + warp * S::kWarpBytes;
  uint4* weights = reinterpret_cast<uint4*>(own) + lane;  // [kSteps][kOut][2][kWarp]
  const uint4 nothing = make_uint4(0, 0, 0, 0);

  // The successor's weights, too, come while this kernel waits: nothing here needs a predecessor's end for its own start.
  start_successor();
#pragma unroll
  for (int t = 0; t < kOut; ++t) {
    // Lines beyond the last output compute the last one again, and nobody stores it.
    const int upper = min(first_output + t * (l.swiglu ? 8 : 16) + line, outputs - 1);
    const int lower = l.swiglu ? upper + outputs : min(first_output + t * 16 + 8 + line, outputs - 1);
    const T* weight = static_cast<const T*>(l.weight) + first_column;
    const T *upper_at = weight + int64_t{upper} * l.in_features, *lower_at = weight + int64_t{lower} * l.in_features;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      uint4* to = weights + (i * kOut + t) * 2 * kWarp;
      if (present(i)) {
        copy_once(to, upper_at + i * kSpan);
        copy_once(to + kWarp, lower_at + i * kSpan);
      } else {
        to[0] = to[kWarp] = nothing;
      }
    }
  }
  commit_copies();
  uint4 gain[kSteps], inputs[kSteps][kRow];
#pragma unroll
  for (int i = 0; kNorm && i < kSteps; ++i) {
    const T* from = static_cast<const T*>(l.norm_weight) + first_column + i * kSpan;
    gain[i] = present(i) ? *reinterpret_cast<const uint4*>(from) : nothing;
  }
  // Results leave in pairs of neighbouring outputs; where one lies, or -1.
  const int items = S::kRows * block_outputs / 2;
  const auto row_of = [&](int item) { return l.swiglu ? item / (S::kColumns / 4) : item / (S::kColumns / 2); };
  const auto column_of = [&](int item) { return (item - row_of(item) * (block_outputs / 2)) * 2; };
  const auto place_of = [&](int item) {
    const int row = first_row + row_of(item), output = first_output + column_of(item);
    return item < items && row < l.rows && output < outputs ? int64_t{row} * outputs + output : int64_t{-1};
  };
  const int64_t first_place = place_of(threadIdx.x);

  wait_for_predecessor();
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
#pragma unroll
    for (int r = 0; r < kRow; ++r) {
      const int row = first_row + r * 8 + line;
      const T* from = static_cast<const T*>(l.x) + int64_t{row} * l.in_features + first_column + i * kSpan;
      inputs[i][r] = present(i) && row < l.rows ? *reinterpret_cast<const uint4*>(from) : nothing;
    }
  }
  uint32_t before = 0;
  if (l.residual && first_place >= 0) {
    before = *reinterpret_cast<const uint32_t*>(static_cast<const T*>(l.residual) + first_place);
  }
  wait_copies<0>();

  float sum[kOut][kRow][4] = {}, squares[kRow] = {};
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
#pragma unroll
    for (int r = 0; kNorm && r < kRow; ++r) {
      uint4& in = inputs[i][r];
      in.x = times_gain<T>(in.x, gain[i].x, squares[r]);
      in.y = times_gain<T>(in.y, gain[i].y, squares[r]);
      in.z = times_gain<T>(in.z, gain[i].z, squares[r]);
      in.w = times_gain<T>(in.w, gain[i].w, squares[r]);
    }
#pragma unroll
    for (int t = 0; t < kOut; ++t) {
      const uint4* at = weights + (i * kOut + t) * 2 * kWarp;
      const uint4 upper = at[0], lower = at[kWarp];
#pragma unroll
      for (int r = 0; r < kRow; ++r) mma_32<T>(sum[t][r], upper, lower, inputs[i][r]);
    }
  }

  __syncwarp();  // the lanes have read their weights
  float *sums = reinterpret_cast<float*>(own), *row_squares = reinterpret_cast<float*>(own + S::kSquaresAt);
#pragma unroll
  for (int r = 0; r < kRow; ++r) {
#pragma unroll
    for (int t = 0; t < kOut; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = l.swiglu ? i / 2 * (S::kColumns / 2) + t * 8 : t * 16 + i / 2 * 8;
        sums[(r * 8 + quad * 2 + i % 2) * S::kStride + column + line] = sum[t][r][i];
      }
    }
    if (kNorm) {
      float all = squares[r];
      all += __shfl_xor_sync(kAllLanes, all, 1);
      all += __shfl_xor_sync(kAllLanes, all, 2);
      if (quad == 0) row_squares[r * 8 + line] = all;
    }
  }
  __syncthreads();

  const auto bias_of = [&](int output) {
    return unpack_pair<T>(*reinterpret_cast<const uint32_t*>(static_cast<const T*>(l.bias) + output));
  };
  int64_t place = first_place;
  for (int item = threadIdx.x; item < items; item += blockDim.x, place = place_of(item)) {
    if (place < 0) continue;
    const int row = row_of(item), column = column_of(item), output = first_output + column;
    float2 value = make_float2(0, 0), up = make_float2(0, 0);
    float square = 0;
    const unsigned char* of_warp = shared;
#pragma unroll 4
    for (int w = 0; w < warps; ++w, of_warp += S::kWarpBytes) {
      const float* from = reinterpret_cast<const float*>(of_warp) + row * S::kStride + column;
      const float2 part = *reinterpret_cast<const float2*>(from);
      value.x += part.x, value.y += part.y;
      if (l.swiglu) {
        const float2 other = *reinterpret_cast<const float2*>(from + S::kColumns / 2);
        up.x += other.x, up.y += other.y;
      }
      if (kNorm) square += reinterpret_cast<const float*>(of_warp + S::kSquaresAt)[row];
    }
    if (kNorm) {
      // 1 / rms belongs to the row, so it is applied to its sums.
      const float factor = rsqrtf(square / l.in_features + l.eps);
      value.x *= factor, value.y *= factor, up.x *= factor, up.y *= factor;
    }
    if (l.bias) {
      const float2 bias = bias_of(output), up_bias = l.swiglu ? bias_of(output + outputs) : bias;
      value.x += bias.x, value.y += bias.y, up.x += up_bias.x, up.y += up_bias.y;
    }
    if (l.float32_output) {
      *reinterpret_cast<float2*>(static_cast<float*>(l.y) + place) = value;
      continue;
    }
    uint32_t result = pack_pair<T>(value.x, value.y);
    T* y = static_cast<T*>(l.y);
    if (l.swiglu) {
      const float2 g = unpack_pair<T>(result), u = unpack_pair<T>(pack_pair<T>(up.x, up.y));
      result = pack_pair<T>(g.x / (1 + __expf(-g.x)) * u.x, g.y / (1 + __expf(-g.y)) * u.y);
    } else if (l.residual) {
      y = static_cast<T*>(l.residual);
      if (place != first_place) before = *reinterpret_cast<const uint32_t*>(y + place);
      const float2 a = unpack_pair<T>(before), b = unpack_pair<T>(result);
      result = pack_pair<T>(a.x + b.x, a.y + b.y);
    }
    *reinterpret_cast<uint32_t*>(y + place) = result;
  }
#endif
}

template <typename T, int kOut, int kRow, int kSteps>
void launch(const SmallBatchLinear& l, int warps, Stream stream) {
  using S = Tile<kOut, kRow, kSteps>;
  const auto kernel = l.norm_weight ? small_kernel<T, kOut, kRow, kSteps, true> : small_kernel<T, kOut, kRow, kSteps, false>;
  const dim3 grid((l.out_features + S::kColumns - 1) / S::kColumns, (l.rows + S::kRows - 1) / S::kRows);
  const int bytes = warps * S::kWarpBytes;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "small_batch_linear");
  launch_chained(kernel, grid, warps * kWarp, bytes, stream, "small_batch_linear", l);
}

template <int kOut, int kRow, int kSteps>
constexpr int kMostBytes = Tile<kOut, kRow, kSteps>::kMaxWarps * Tile<kOut, kRow, kSteps>::kWarpBytes;

// Whether every tile fits on chip: the choice may depend on the device, but not on the number of rows.
bool has_room() {
  constexpr int kWanted = std::max({kMostBytes<2, 2, 2>, kMostBytes<2, 4, 3>, kMostBytes<3, 2, 3>, kMostBytes<3, 4, 3>});
  static_assert(kWanted <= 227 << 10, "what a Hopper block may have");
  return shared_limit() >= kWanted;
}

}  // namespace

bool small_linear_cuda(const SmallBatchLinear& l, Stream stream) {
  constexpr int kMostSteps = kMaxSmallLinearFeatures / kSpan, kManyOutputs = 2048;
  static_assert(kMostSteps == 3 * Tile<1, 1, 3>::kMaxWarps, "three steps a warp");
  const int steps = (l.in_features + kSpan - 1) / kSpan, outputs = l.swiglu ? l.out_features / 2 : l.out_features;
  if (!chains_launches() || !has_room() || steps > kMostSteps || outputs % 2) return false;
  // Larger tiles read x less often, smaller ones leave each block less to do. The bounds were measured with 132 multiprocessors.
  const auto fits = [&](int out, int row, int blocks) {
    return ((l.out_features + out * 16 - 1) / (out * 16)) * ((l.rows + row * 8 - 1) / (row * 8)) <= blocks;
  };
  with_half(l.type, [&](auto t) {
    using T = decltype(t);
    // How many steps a warp takes decides the order of the sums, so it has to depend on the weight alone.
    if (l.out_features > kManyOutputs) {
      const int warps = (steps + 2) / 3;
      if (fits(1, 1, 144)) return launch<T, 1, 1, 3>(l, warps, stream);
      if (fits(2, 1, 216)) return launch<T, 2, 1, 3>(l, warps, stream);
      if (fits(3, 1, 256)) return launch<T, 3, 1, 3>(l, warps, stream);
      if (fits(3, 2, 256) || warps > Tile<3, 4, 3>::kMaxWarps) return launch<T, 3, 2, 3>(l, warps, stream);
      return launch<T, 3, 4, 3>(l, warps, stream);
    }
    if (steps <= 2 * Tile<1, 1, 2>::kMaxWarps) {
      const int warps = (steps + 1) / 2;
      if (fits(1, 1, 144)) return launch<T, 1, 1, 2>(l, warps, stream);
      if (fits(2, 1, 216)) return launch<T, 2, 1, 2>(l, warps, stream);
      return launch<T, 2, 2, 2>(l, warps, stream);
    }
    const int warps = (steps + 2) / 3;  // more than eight, so that fewer blocks fill the device
    if (fits(1, 1, 72)) return launch<T, 1, 1, 3>(l, warps, stream);
    if (fits(2, 1, 64)) return launch<T, 2, 1, 3>(l, warps, stream);
    if (fits(2, 2, 128)) return launch<T, 2, 2, 3>(l, warps, stream);
    launch<T, 2, 4, 3>(l, warps, stream);
  });
  return true;
}

}  // namespace bireme
