#include "kernels/device/cuda/chained_launch.cuh"
#include "kernels/layers/cuda/layers.h"

namespace bireme {
namespace {

constexpr int kMaxVecs = 4;  // 16-byte vectors of a row that a thread keeps in registers

enum class Residual { kNone, kAddThenNorm, kNormThenAdd };

// One block norms one row of `width` elements. kAddThenNorm: the row is residual + x, written back to residual.
// kNormThenAdd: the norm of x goes to residual instead of out.
template <typename T, Residual kResidual>
__device__ void norm_row(const T* x, T* residual, const T* weight, float eps, int width, T* out) {
  __shared__ float scratch[kWarp];
  float row[kMaxVecs][kVec];
  float squares = 0;
#pragma unroll
  for (int v = 0; v < kMaxVecs; ++v) {
    const int column = (v * blockDim.x + threadIdx.x) * kVec;
    if (column >= width) continue;
    const Vec8<T> in = load_vec(x + column);
    Vec8<T> sum;
    if (kResidual == Residual::kAddThenNorm) sum = load_vec(residual + column);
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      row[v][i] = to_float(in.lane[i]);
      if (kResidual == Residual::kAddThenNorm) {
        row[v][i] += to_float(sum.lane[i]);
        sum.lane[i] = from_float<T>(row[v][i]);
      }
      squares = fmaf(row[v][i], row[v][i], squares);
    }
    if (kResidual == Residual::kAddThenNorm) store_vec(residual + column, sum);
  }
  const float scale = rsqrtf(block_sum(squares, scratch) / width + eps);
#pragma unroll
  for (int v = 0; v < kMaxVecs; ++v) {
    const int column = (v * blockDim.x + threadIdx.x) * kVec;
    if (column >= width) continue;
    const Vec8<T> gain = load_vec(weight + column);
    Vec8<T> result;
    if (kResidual == Residual::kNormThenAdd) result = load_vec(residual + column);
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      const float normed = row[v][i] * scale * to_float(gain.lane[i]);
      result.lane[i] = from_float<T>(kResidual == Residual::kNormThenAdd ? to_float(result.lane[i]) + normed : normed);
    }
    store_vec((kResidual == Residual::kNormThenAdd ? residual : out) + column, result);
  }
}

template <typename T, Residual kResidual>
__global__ void norm_kernel(const T* x, T* residual, const T* weight, float eps, int hidden, T* out) {
  wait_for_predecessor();
  start_successor();
  const int64_t start = int64_t{blockIdx.x} * hidden;
  norm_row<T, kResidual>(x + start, residual + start, weight, eps, hidden, out + start);
}

// Block (row, 0) norms the row's queries, block (row, 1) its keys.
template <typename T>
__global__ void projection_norm_kernel(T* qkv, const T* q_weight, const T* k_weight, float eps, int q_width, int kv_width) {
  wait_for_predecessor();
  start_successor();
  const bool is_key = blockIdx.y == 1;
  T* row = qkv + int64_t{blockIdx.x} * (q_width + 2 * kv_width) + (is_key ? q_width : 0);
  norm_row<T, Residual::kNone>(row, nullptr, is_key ? k_weight : q_weight, eps, is_key ? kv_width : q_width, row);
}

// Threads of a block that norms rows of `width` elements.
int norm_threads(int64_t width, const char* op) {
  const int64_t vecs = width / kVec, threads = min(int64_t{1024}, (vecs + kWarp - 1) / kWarp * kWarp);
  if (vecs > threads * kMaxVecs) throw std::runtime_error(std::string(op) + ": rows have more than 32768 elements");
  return static_cast<int>(threads);
}

template <Residual kResidual>
void launch_norm(const char* op, Half type, const void* x, void* residual, const void* weight, float eps, int64_t rows,
                 int64_t hidden, void* out, Stream stream) {
  with_half(type, [&](auto t) {
    using T = decltype(t);
    launch_chained(norm_kernel<T, kResidual>, dim3(rows), norm_threads(hidden, op), 0, stream, op, static_cast<const T*>(x),
                   static_cast<T*>(residual), static_cast<const T*>(weight), eps, static_cast<int>(hidden),
                   static_cast<T*>(out));
  });
}

// One warp a head; heads of all rows in a line, value heads left out.
template <typename T>
__global__ void qk_norm_kernel(T* qkv, const T* q_weight, const T* k_weight, float eps, int64_t heads_in_all, int q_heads,
                               int kv_heads, int head_dim) {
  wait_for_predecessor();
  start_successor();
  const int64_t index = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / kWarp;
  if (index >= heads_in_all) return;
  const int normed = q_heads + kv_heads, head = index % normed, column = threadIdx.x % kWarp * kVec;
  T* data = qkv + (index / normed * (normed + kv_heads) + head) * head_dim + column;
  const bool inside = column < head_dim;
  Vec8<T> row = inside ? load_vec(data) : zero_vec<T>();
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kVec; ++i) squares = fmaf(to_float(row.lane[i]), to_float(row.lane[i]), squares);
  const float scale = rsqrtf(warp_sum(squares) / head_dim + eps);
  if (!inside) return;
  const Vec8<T> gain = load_vec((head < q_heads ? q_weight : k_weight) + column);
#pragma unroll
  for (int i = 0; i < kVec; ++i) row.lane[i] = from_float<T>(to_float(row.lane[i]) * scale * to_float(gain.lane[i]));
  store_vec(data, row);
}

template <typename T>
__global__ void swiglu_kernel(const T* gate_up, int64_t vecs, int inner_vecs, T* out) {
  wait_for_predecessor();
  start_successor();
  const int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (index >= vecs) return;
  const int64_t row = index / inner_vecs, column = index % inner_vecs;
  const T* gate_at = gate_up + (row * 2 * inner_vecs + column) * kVec;
  const Vec8<T> gate = load_vec(gate_at), up = load_vec(gate_at + int64_t{inner_vecs} * kVec);
  Vec8<T> result;
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    const float g = to_float(gate.lane[i]);
    result.lane[i] = from_float<T>(g / (1 + __expf(-g)) * to_float(up.lane[i]));
  }
  store_vec(out + index * kVec, result);
}

template <typename Id>
__global__ void gather_kernel(const uint4* table, int64_t table_rows, int row_vecs, const Id* ids, uint4* out) {
  wait_for_predecessor();
  start_successor();
  const int64_t id = ids[blockIdx.x];
  const bool known = id >= 0 && id < table_rows;
  for (int i = threadIdx.x; i < row_vecs; i += blockDim.x) {
    out[int64_t{blockIdx.x} * row_vecs + i] = known ? table[id * row_vecs + i] : make_uint4(0, 0, 0, 0);
  }
}

template <typename Id>
void launch_gather(const void* table, int64_t table_rows, int64_t width, const Id* ids, int64_t rows, void* out, Stream stream) {
  const int vecs = static_cast<int>(width / kVec);
  launch_chained(gather_kernel<Id>, dim3(rows), min(256, (vecs + kWarp - 1) / kWarp * kWarp), 0, stream, "gather_rows",
                 static_cast<const uint4*>(table), table_rows, vecs, ids, static_cast<uint4*>(out));
}

}  // namespace

void rms_norm_cuda(Half type, const void* x, const void* weight, float eps, int64_t rows, int64_t hidden, void* out,
                   Stream stream) {
  launch_norm<Residual::kNone>("rms_norm", type, x, nullptr, weight, eps, rows, hidden, out, stream);
}

void add_rms_norm_cuda(Half type, const void* x, void* residual, const void* weight, float eps, int64_t rows, int64_t hidden,
                       void* out, Stream stream) {
  launch_norm<Residual::kAddThenNorm>("add_rms_norm", type, x, residual, weight, eps, rows, hidden, out, stream);
}

void rms_norm_add_cuda(Half type, const void* x, void* residual, const void* weight, float eps, int64_t rows, int64_t hidden,
                       Stream stream) {
  launch_norm<Residual::kNormThenAdd>("rms_norm_add", type, x, residual, weight, eps, rows, hidden, nullptr, stream);
}

void projection_norm_cuda(Half type, void* qkv, const void* q_weight, const void* k_weight, float eps, int64_t rows,
                          int64_t q_width, int64_t kv_width, Stream stream) {
  const int threads = norm_threads(max(q_width, kv_width), "projection_norm");
  with_half(type, [&](auto t) {
    using T = decltype(t);
    launch_chained(projection_norm_kernel<T>, dim3(rows, 2), threads, 0, stream, "projection_norm", static_cast<T*>(qkv),
                   static_cast<const T*>(q_weight), static_cast<const T*>(k_weight), eps, static_cast<int>(q_width),
                   static_cast<int>(kv_width));
  });
}

void qk_norm_cuda(Half type, void* qkv, const void* q_weight, const void* k_weight, float eps, int64_t rows, int64_t q_heads,
                  int64_t kv_heads, int64_t head_dim, Stream stream) {
  constexpr int kThreads = 128;
  const int64_t heads = rows * (q_heads + kv_heads), blocks = (heads * kWarp + kThreads - 1) / kThreads;
  with_half(type, [&](auto t) {
    using T = decltype(t);
    launch_chained(qk_norm_kernel<T>, dim3(blocks), kThreads, 0, stream, "qk_norm", static_cast<T*>(qkv),
                   static_cast<const T*>(q_weight), static_cast<const T*>(k_weight), eps, heads, static_cast<int>(q_heads),
                   static_cast<int>(kv_heads), static_cast<int>(head_dim));
  });
}

void swiglu_cuda(Half type, const void* gate_up, int64_t rows, int64_t inner, void* out, Stream stream) {
  constexpr int kThreads = 256;
  const int64_t vecs = rows * inner / kVec;
  with_half(type, [&](auto t) {
    using T = decltype(t);
    launch_chained(swiglu_kernel<T>, dim3((vecs + kThreads - 1) / kThreads), kThreads, 0, stream, "swiglu",
                   static_cast<const T*>(gate_up), vecs, static_cast<int>(inner / kVec), static_cast<T*>(out));
  });
}

void gather_rows_cuda(const void* table, int64_t table_rows, int64_t width, const int64_t* ids, int64_t rows, void* out,
                      Stream stream) {
  launch_gather(table, table_rows, width, ids, rows, out, stream);
}

void gather_rows_cuda(const void* table, int64_t table_rows, int64_t width, const int32_t* ids, int64_t rows, void* out,
                      Stream stream) {
  launch_gather(table, table_rows, width, ids, rows, out, stream);
}

}  // namespace bireme
