#include "kernels/sampling/philox.h"
#include "kernels/device/cuda/chained_launch.cuh"
#include "kernels/sampling/cuda/row_scan.cuh"
#include "kernels/sampling/cuda/sampling.h"

namespace bireme {
namespace {

// Weights are whole numbers of 2^-42, so that their sums do not depend on the order: 2^21 tokens fit.
constexpr float kWeightUnits = 4398046511104.0f;
constexpr int kTileTokens = 4 * kRowThreads;

__device__ inline float philox_uniform_device(uint64_t seed, uint64_t position) {
  uint32_t counter[4] = {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 0, 0};
  uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * counter[0], b = uint64_t{0xCD9E8D57u} * counter[2];
    const uint32_t next[4] = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
                              static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
#pragma unroll
    for (int i = 0; i < 4; ++i) counter[i] = next[i];
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return static_cast<float>(counter[0] >> 8) * 0x1p-24f;
}

__global__ void __launch_bounds__(kRowThreads) sample_kernel(SampleState state, const float* logits, int vocab,
                                                             const int32_t* sample_slots, int64_t* tokens) {
  extern __shared__ __align__(16) unsigned char shared[];
  RowScratch* s = reinterpret_cast<RowScratch*>(shared);
  wait_for_predecessor();
  start_successor();
  const float* row = logits + int64_t{blockIdx.x} * vocab;
  const int64_t slot = sample_slots[blockIdx.x];
  const bool greedy = slot < 0 || slot >= state.slots || !(state.temperature[slot] > kGreedyTemperature);

  bool nan;
  uint64_t best_key = row_best(row, vocab, s->reduce, &nan);
  const float temperature = greedy ? 1.0f : state.temperature[slot], best_logit = key_value(best_key);
  if (greedy || nan || !best_key || !(fabsf(best_logit / temperature) < INFINITY)) {
    if (!best_key) {
      // Nothing above -inf: the first -inf, or index 0 in a row of NaN alone.
      for_each_logit(row, vocab, [&](int i, float value) {
        const uint64_t key = value == value ? order_key(value, i) : 0;
        best_key = key > best_key ? key : best_key;
      });
      best_key = block_max(best_key, s->reduce);
    }
    if (threadIdx.x == 0) tokens[blockIdx.x] = best_key ? key_index(best_key) : 0;
    return;
  }

  const float min_p = state.min_p[slot], top_p = state.top_p[slot];
  const int top_k = state.top_k[slot];
  const float sharpness = 1.0f / temperature;
  const auto distance_of = [&](float value) { return __fmul_rn(__fsub_rn(best_logit, value), sharpness); };
  const auto units_of = [&](float distance) {
    const float weight = expf(-distance);
    return weight >= min_p ? __float2ull_rn(weight * kWeightUnits) : 0ull;
  };
  uint64_t last = ~uint64_t{0};  // largest kept key of (distance, index)
  const auto kept = [&](int i, float distance) {
    return (uint64_t{__float_as_uint(distance)} << 32 | static_cast<uint32_t>(i)) <= last;
  };
  if (top_k > 0 && top_k < vocab) {
    const auto one = [&](int, float distance) -> uint64_t { return !(min_p > 0) || expf(-distance) >= min_p; };
    uint64_t count = 0;
    if (min_p > 0) {
      for_each_logit(row, vocab, [&](int i, float value) { count += one(i, distance_of(value)); });
      count = block_total(count, s->reduce);
    } else {
      count = vocab;
    }
    if (static_cast<uint64_t>(top_k) < count) {
      // Everything as near as the k-th stays.
      last = find_place(row, vocab, top_k, s, distance_of, one).key | 0xffffffffu;
    }
  }
  const auto kept_units = [&](int i, float distance) -> uint64_t { return kept(i, distance) ? units_of(distance) : 0; };
  if (top_p < 1) {
    uint64_t sum = 0;
    for_each_logit(row, vocab, [&](int i, float value) { sum += kept_units(i, distance_of(value)); });
    sum = block_total(sum, s->reduce);
    const uint64_t wanted = static_cast<uint64_t>(ceil(static_cast<double>(top_p) * static_cast<double>(sum)));
    const uint64_t target = min(max(wanted, uint64_t{1}), sum);
    __syncthreads();
    last = find_place(row, vocab, target, s, distance_of, kept_units).key;
  }

  // Sums of tiles in index order, then the tile that holds the token.
  const int tiles = (vocab + kTileTokens - 1) / kTileTokens;
  const auto tile_units = [&](int tile, uint64_t (&units)[4]) {
    uint64_t sum = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int i = tile * kTileTokens + threadIdx.x * 4 + j;
      units[j] = i < vocab ? kept_units(i, distance_of(row[i])) : 0;
      sum += units[j];
    }
    return sum;
  };
  __syncthreads();
  for (int tile = threadIdx.x; tile < tiles; tile += kRowThreads) s->sums[tile] = 0;
  __syncthreads();
#pragma unroll 2
  for (int tile = 0; tile < tiles; ++tile) {
    uint64_t units[4], sum = tile_units(tile, units);
    for (int offset = kWarp / 2; offset; offset /= 2) sum += __shfl_xor_sync(kAllLanes, sum, offset);
    if (threadIdx.x % kWarp == 0 && sum) add_shared(&s->sums[tile], sum);
  }
  __syncthreads();
  uint64_t total = 0;
  for (int tile = 0; tile < tiles; ++tile) total += s->sums[tile];
  const uint32_t u = static_cast<uint32_t>(
      philox_uniform_device(state.seeds[slot], state.prompt_lens[slot] + state.step_idx[slot]) * 0x1p24f);
  // The first token at which sum > u / 2^24 * total, in whole numbers.
  const uint64_t target = __umul64hi(total, uint64_t{u} << 40);
  uint64_t before = 0;
  int tile = 0;
  while (tile < tiles - 1 && before + s->sums[tile] <= target) before += s->sums[tile++];
  uint64_t units[4], of_tile;
  const uint64_t own = tile_units(tile, units);
  uint64_t end = before + block_prefix(own, s->reduce, &of_tile);
  if (end > target && end - own <= target) {
    uint64_t sum = end - own;
    int j = 0;
    while (j < 3 && sum + units[j] <= target) sum += units[j++];
    tokens[blockIdx.x] = tile * kTileTokens + static_cast<int>(threadIdx.x) * 4 + j;
  }
}

}  // namespace

void sample_cuda(const SampleState& state, const float* logits, int64_t rows, int64_t vocab,
                 const int32_t* sample_slots, int64_t* tokens, Stream stream) {
  if (rows == 0) return;
  if (vocab > 1 << 21) throw std::runtime_error("sample: a vocabulary of more than 2097152 tokens");
  check_cuda(cudaFuncSetAttribute(sample_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(RowScratch)), "sample");
  launch_chained(sample_kernel, dim3(rows), kRowThreads, sizeof(RowScratch), stream, "sample", state, logits, vocab,
                 sample_slots, tokens);
}

}  // namespace bireme
