#include "kernels/sampling/cuda/row_scan.cuh"
#include "kernels/sampling/cuda/sampling.h"

namespace bireme {
namespace {

__device__ inline float or_lowest(float value) { return value == value ? value : -INFINITY; }

// Double sums in a fixed order: thread by thread, then over lanes, then over warps.
__device__ inline double block_sum_double(double value, double* scratch) {
  for (int offset = kWarp / 2; offset; offset /= 2) value += __shfl_xor_sync(kAllLanes, value, offset);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
  __syncthreads();
  value = scratch[threadIdx.x % kWarp];
  for (int offset = kWarp / 2; offset; offset /= 2) value += __shfl_xor_sync(kAllLanes, value, offset);
  return value;
}

__global__ void __launch_bounds__(kRowThreads) logprobs_kernel(const float* logits, int vocab, const int64_t* tokens, int num,
                                                               int64_t* ids, float* logprobs, int64_t* ranks) {
  extern __shared__ __align__(16) unsigned char shared[];
  RowScratch* s = reinterpret_cast<RowScratch*>(shared);
  const float* row = logits + int64_t{blockIdx.x} * vocab;
  const int64_t token = tokens[blockIdx.x];
  const bool valid = token >= 0 && token < vocab;
  const float chosen = valid ? or_lowest(row[token]) : -INFINITY;

  bool nan;
  const uint64_t best_key = row_best(row, vocab, s->reduce, &nan);
  const float best = best_key ? key_value(best_key) : -INFINITY;
  // Equal values are at distance 0, also when both are infinite.
  const auto distance_of = [&](float value) {
    value = or_lowest(value);
    return value == best ? 0.0f : best - value;
  };
  double sum = 0;
  uint64_t greater = 0;
  for_each_logit(row, vocab, [&](int, float value) {
    sum += static_cast<double>(expf(-distance_of(value)));
    greater += value > chosen;
  });
  greater = block_total(greater, s->reduce);
  __syncthreads();
  const double log_total = log(block_sum_double(sum, reinterpret_cast<double*>(s->reduce)));
  const auto logprob = [&](float value) { return static_cast<float>(-static_cast<double>(distance_of(value)) - log_total); };

  int64_t* out_ids = ids + int64_t{blockIdx.x} * (num + 1);
  float* out = logprobs + int64_t{blockIdx.x} * (num + 1);
  if (threadIdx.x == 0) {
    out_ids[0] = token;
    out[0] = valid ? logprob(chosen) : -INFINITY;
    ranks[blockIdx.x] = valid ? 1 + static_cast<int64_t>(greater) : 0;
  }
  for (int i = vocab + threadIdx.x; i < num; i += kRowThreads) {
    out_ids[1 + i] = -1;
    out[1 + i] = -INFINITY;
  }
  const int count = min(num, vocab);
  if (count == 0) return;
  const auto one = [](int, float) -> uint64_t { return 1; };
  __syncthreads();
  const uint64_t last = find_place(row, vocab, count, s, distance_of, one).key;
  __syncthreads();
  if (threadIdx.x == 0) s->listed = 0;
  __syncthreads();
  const auto key_of = [&](int i, float value) {
    return uint64_t{__float_as_uint(distance_of(value))} << 32 | static_cast<uint32_t>(i);
  };
  // Exactly `count` keys are at or before the last one.
  for_each_logit(row, vocab, [&](int i, float value) {
    const uint64_t key = key_of(i, value);
    if (key <= last) s->list[atomicAdd(&s->listed, 1)] = key;
  });
  __syncthreads();
  for (int a = threadIdx.x; a < count; a += kRowThreads) {
    const uint64_t key = s->list[a];
    int place = 0;
    for (int b = 0; b < count; ++b) place += s->list[b] < key;
    const int index = static_cast<int>(key & 0xffffffffu);
    out_ids[1 + place] = index;
    out[1 + place] = logprob(row[index]);
  }
}

}  // namespace

void token_logprobs_cuda(const float* logits, int64_t rows, int64_t vocab, const int64_t* tokens, int64_t num, int64_t* ids,
                         float* logprobs, int64_t* ranks, Stream stream) {
  if (rows == 0) return;
  if (num > kListed) throw std::runtime_error("token_logprobs: num is " + std::to_string(num) + ", needs to be at most 2048");
  check_cuda(cudaFuncSetAttribute(logprobs_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(RowScratch)), "logprobs");
  logprobs_kernel<<<static_cast<unsigned>(rows), kRowThreads, sizeof(RowScratch), stream>>>(
      logits, static_cast<int>(vocab), tokens, static_cast<int>(num), ids, logprobs, ranks);
  check_launch("token_logprobs");
}

}  // namespace bireme
