#include "kernels/device/cuda/common.cuh"
#include "kernels/sampling/cuda/sampling.h"

namespace bireme {
namespace {

// A block looks after one slice of one row's vocabulary, with a counter a token in shared memory.
constexpr int kSlice = 8192;
constexpr int kThreads = 512;
constexpr int kSeen = 1 << 30;  // in a counter: the token occurs; below it, how often it was generated

__global__ void penalties_kernel(ApplyPenaltiesState state, float* logits, int64_t vocab, const int32_t* sample_slots) {
  __shared__ int counts[kSlice];
  const int64_t slot = sample_slots[blockIdx.y], first = int64_t{blockIdx.x} * kSlice;
  if (slot < 0 || slot >= state.slots) return;
  float* row = logits + blockIdx.y * vocab;
  const auto mine = [&](int64_t token) { return token >= first && token < first + kSlice && token < vocab; };

  const int64_t* bias_ids = state.logit_bias_ids + slot * state.biases;
  for (int64_t i = threadIdx.x; i < state.biases; i += blockDim.x) {
    const int64_t token = bias_ids[i];
    if (!mine(token)) continue;
    // The first of equal ids adds for all, in their order.
    bool repeated = false;
    for (int64_t j = 0; j < i && !repeated; ++j) repeated = bias_ids[j] == token;
    if (repeated) continue;
    float value = row[token];
    for (int64_t j = i; j < state.biases; ++j) {
      if (bias_ids[j] == token) value += state.logit_bias_values[slot * state.biases + j];
    }
    row[token] = value;
  }
  __syncthreads();
  const int64_t prompt = state.prompt_lens[slot], step = state.step_idx[slot];
  if (step < state.min_dec_len[slot]) {
    for (int64_t i = threadIdx.x; i < state.eos_ids; i += blockDim.x) {
      const int64_t token = state.eos_token_id[slot * state.eos_ids + i];
      if (mine(token)) row[token] = -INFINITY;
    }
    for (int64_t i = threadIdx.x; i < state.stop_ids; i += blockDim.x) {
      const int64_t token = state.stop_token_ids[slot * state.stop_ids + i];
      if (mine(token)) row[token] = -INFINITY;
    }
  }
  const int64_t* history = state.token_ids_all + slot * state.max_model_len;
  const int64_t* allowed = state.allowed_token_ids + slot * state.allowed_ids;
  if (allowed[0] >= 0) {
    for (int i = threadIdx.x; i < kSlice; i += blockDim.x) counts[i] = 0;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < state.allowed_ids; i += blockDim.x) {
      if (mine(allowed[i])) counts[allowed[i] - first] = 1;
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; i < kSlice && first + i < vocab; i += blockDim.x) {
      if (!counts[i]) row[first + i] = -INFINITY;
    }
    __syncthreads();
  }
  // The last token of each sequence whose others end what was generated.
  for (int64_t i = threadIdx.x; i < state.num_bad_seqs; i += blockDim.x) {
    const int64_t before = state.bad_seqs_len[slot * state.num_bad_seqs + i] - 1;
    if (before < 0 || before > step) continue;
    const int64_t* sequence = state.bad_seqs + (slot * state.num_bad_seqs + i) * state.bad_seq_len;
    if (!mine(sequence[before])) continue;
    bool matches = true;
    for (int64_t j = 0; j < before && matches; ++j) matches = sequence[j] == history[prompt + step - before + j];
    if (matches) row[sequence[before]] = -INFINITY;
  }
  const float repetition = state.penalty_score[slot], presence = state.presence_score[slot];
  const float frequency = state.frequency_score[slot];
  if (repetition == 1.0f && presence == 0.0f && frequency == 0.0f) return;

  for (int i = threadIdx.x; i < kSlice; i += blockDim.x) counts[i] = 0;
  __syncthreads();
  const int64_t total = min(prompt + step, state.max_model_len);
  for (int64_t i = threadIdx.x; i < total; i += blockDim.x) {
    const int64_t token = history[i];
    if (!mine(token)) continue;
    atomicOr(&counts[token - first], kSeen);
    if (i >= prompt) atomicAdd(&counts[token - first], 1);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kSlice; i += blockDim.x) {
    if (!counts[i]) continue;
    float value = row[first + i];
    value = value > 0 ? value / repetition : value * repetition;
    const int generated = counts[i] & (kSeen - 1);
    if (generated) {
      // Rounded after each step, as the twin does.
      value = __fsub_rn(value, __fmul_rn(frequency, static_cast<float>(generated)));
      value = __fsub_rn(value, presence);
    }
    row[first + i] = value;
  }
}

__global__ void temperature_kernel(ApplyTemperatureState state, float* logits, int64_t vocab, const int32_t* sample_slots) {
  const int64_t slot = sample_slots[blockIdx.y], first = int64_t{blockIdx.x} * kSlice;
  if (slot < 0 || slot >= state.slots || !(state.temperature[slot] > kGreedyTemperature)) return;
  const float temperature = state.temperature[slot];
  float* row = logits + blockIdx.y * vocab;
  const int64_t end = min(first + kSlice, vocab);
  for (int64_t i = first + threadIdx.x; i < end; i += blockDim.x) row[i] = __fdiv_rn(row[i], temperature);
}

}  // namespace

void apply_penalties_cuda(const ApplyPenaltiesState& state, float* logits, int64_t vocab, const int32_t* sample_slots,
                          int64_t rows, Stream stream) {
  if (rows == 0) return;
  const dim3 grid(static_cast<unsigned>((vocab + kSlice - 1) / kSlice), static_cast<unsigned>(rows));
  penalties_kernel<<<grid, kThreads, 0, stream>>>(state, logits, vocab, sample_slots);
  check_launch("apply_penalties");
}

void apply_temperature_cuda(const ApplyTemperatureState& state, float* logits, int64_t vocab, const int32_t* sample_slots,
                            int64_t rows, Stream stream) {
  if (rows == 0) return;
  const dim3 grid(static_cast<unsigned>((vocab + kSlice - 1) / kSlice), static_cast<unsigned>(rows));
  temperature_kernel<<<grid, kThreads, 0, stream>>>(state, logits, vocab, sample_slots);
  check_launch("apply_temperature");
}

}  // namespace bireme
