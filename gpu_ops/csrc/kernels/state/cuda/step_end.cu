// How a step ends: stop detection, history and lengths, the block that the host reads.
#include "kernels/device/cuda/chained_launch.cuh"
#include "kernels/state/cuda/state.h"

namespace bireme {
namespace {

constexpr int kSlotThreads = 1024;

// The row that samples for `slot`, -1 if none does. The lanes of a warp search together.
__device__ inline int row_of_slot(const int32_t* sample_slots, int rows, int slot) {
  for (int start = 0; start < rows; start += kWarp) {
    const int row = start + threadIdx.x % kWarp;
    const unsigned hit = __ballot_sync(kAllLanes, row < rows && sample_slots[row] == slot);
    if (hit) return start + __ffs(hit) - 1;
  }
  return -1;
}

__device__ inline bool warp_contains(const int64_t* ids, int64_t count, int64_t token) {
  bool found = false;
  for (int64_t i = threadIdx.x % kWarp; i < count; i += kWarp) found |= ids[i] == token;
  return __any_sync(kAllLanes, found);
}

// Whether `sequence` is the tail of the generated tokens with `token`, which is not in the history yet, appended.
__device__ inline bool warp_ends_with(const int64_t* generated, int64_t count, int64_t token, const int64_t* sequence,
                                      int64_t length) {
  if (length < 1 || length > count + 1) return false;
  bool same = true;
  for (int64_t i = threadIdx.x % kWarp; i < length; i += kWarp) {
    same &= sequence[i] == (i == length - 1 ? token : generated[count - (length - 1) + i]);
  }
  return __all_sync(kAllLanes, same);
}

__device__ StopReason find_stop(const DetectStopState& state, int64_t slot, int64_t token, int64_t* matched) {
  const int64_t prompt = state.prompt_lens[slot], before = state.step_idx[slot], generated = before + 1;
  *matched = token;
  if (generated > state.min_dec_len[slot] && token >= 0) {
    if (warp_contains(state.eos_token_id + slot * state.eos_ids, state.eos_ids, token)) return kStopEos;
    if (warp_contains(state.stop_token_ids + slot * state.stop_ids, state.stop_ids, token)) return kStopToken;
    const int64_t* history = state.token_ids_all + slot * state.max_model_len + prompt;
    for (int64_t i = 0; i < state.num_stop_seqs; ++i) {
      const int64_t index = slot * state.num_stop_seqs + i;
      if (warp_ends_with(history, before, token, state.stop_seqs + index * state.stop_seq_len, state.stop_seqs_len[index])) {
        *matched = i;
        return kStopSequence;
      }
    }
  }
  *matched = -1;
  return generated >= state.max_dec_len[slot] || prompt + generated >= state.max_model_len ? kStopLength : kNoStop;
}

// One warp a slot.
__global__ void detect_stop_kernel(DetectStopState state, const int64_t* tokens, const int32_t* sample_slots, int rows) {
  wait_for_predecessor();
  start_successor();
  const int slot = (blockIdx.x * blockDim.x + threadIdx.x) / kWarp;
  if (slot >= state.slots) return;
  const int row = row_of_slot(sample_slots, rows, slot);
  int64_t matched = -1;
  const StopReason reason = row < 0 ? kNoStop : find_stop(state, slot, tokens[row], &matched);
  if (threadIdx.x % kWarp) return;
  state.stop_reason[slot] = reason;
  state.matched_stop[slot] = matched;
  if (reason != kNoStop) state.stop_flags[slot] = true;
}

// One block, because not_need_stop speaks of all slots. `row_of` holds one entry a slot.
__global__ void update_inputs_kernel(UpdateInputsState state, int64_t block_size, const int64_t* tokens,
                                     const int32_t* sample_slots, int rows) {
  extern __shared__ int row_of[];
  wait_for_predecessor();
  start_successor();
  const int slots = static_cast<int>(state.slots);
  for (int slot = threadIdx.x; slot < slots; slot += blockDim.x) row_of[slot] = -1;
  __syncthreads();
  for (int row = threadIdx.x; row < rows; row += blockDim.x) {
    const int slot = sample_slots[row];
    if (slot >= 0 && slot < slots) row_of[slot] = row;
  }
  __syncthreads();
  bool any_runs = false;
  for (int slot = threadIdx.x; slot < slots; slot += blockDim.x) {
    const int row = row_of[slot];
    const int64_t prompt = state.prompt_lens[slot];
    int64_t step = state.step_idx[slot];
    if (row >= 0) {
      const int64_t position = prompt + step;
      if (position < state.max_model_len) state.token_ids_all[slot * state.max_model_len + position] = tokens[row];
      state.step_idx[slot] = ++step;
    }
    state.sampled_token_ids[slot] = row >= 0 ? tokens[row] : -1;
    state.num_sampled[slot] = row >= 0;

    const int32_t now = state.seq_lens_this_time[slot];
    const bool stopped = state.stop_flags[slot];
    const int64_t length = state.seq_lens_decoder[slot] + int64_t{now}, index = length / block_size;
    state.seq_lens_decoder[slot] = static_cast<int32_t>(length);
    bool paused = state.is_block_step[slot];
    if (!stopped && (index >= state.blocks || state.block_tables[slot * state.blocks + index] < 0)) {
      state.is_block_step[slot] = paused = true;
    }
    if (now > 0) {
      state.seq_lens_this_time[slot] = !stopped && !paused && length == prompt + step - 1;
      state.seq_lens_encoder[slot] = 0;
    }
    any_runs |= !stopped && prompt > 0;
  }
  any_runs = __syncthreads_or(any_runs);
  if (threadIdx.x == 0) *state.not_need_stop = any_runs;
}

__global__ void pack_outputs_kernel(PackOutputsState state, int64_t* landing) {
  wait_for_predecessor();
  start_successor();
  const int64_t slot = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (slot == 0) landing[0] = state.slots << kSlotCountShift | (*state.not_need_stop ? kSomeSlotRuns : 0);
  if (slot >= state.slots) return;
  int64_t* out = landing + 1 + slot * kSlotFields;
  out[0] = state.num_sampled[slot] ? state.sampled_token_ids[slot] : -1;
  out[1] = state.num_sampled[slot];
  out[2] = state.stop_reason[slot];
  out[3] = state.matched_stop[slot];
  out[4] = state.seq_lens_decoder[slot];
}

// One warp a slot.
__global__ void pack_logprobs_kernel(PackLogprobsState state, int64_t* landing, int64_t landing_columns,
                                     const int32_t* sample_slots, const int64_t* ids, const float* logprobs,
                                     const int64_t* ranks, int rows, int64_t columns) {
  const int slot = (blockIdx.x * blockDim.x + threadIdx.x) / kWarp, lane = threadIdx.x % kWarp;
  if (slot >= state.slots) return;
  if (slot == 0 && lane == 0) landing[0] |= kHasLogprobs;
  int64_t* out = landing + 1 + state.slots * kSlotFields + slot * (2 + 2 * landing_columns);
  const int row = row_of_slot(sample_slots, rows, slot);
  const bool asked = row >= 0 && state.num_sampled[slot] && state.num_logprobs[slot] >= 0;
  const int64_t count = asked ? min(min(int64_t{state.num_logprobs[slot]}, columns - 1), landing_columns - 1) : -1;
  if (lane == 0) {
    out[0] = asked ? ranks[row] : 0;
    out[1] = count;
  }
  for (int64_t i = lane; i <= count; i += kWarp) {
    out[2 + i] = ids[row * columns + i];
    out[2 + landing_columns + i] = __double_as_longlong(static_cast<double>(logprobs[row * columns + i]));
  }
}

constexpr int kWarpsPerBlock = 4;
unsigned blocks_of_warps(int64_t warps) { return static_cast<unsigned>((warps + kWarpsPerBlock - 1) / kWarpsPerBlock); }

}  // namespace

void detect_stop_cuda(const DetectStopState& state, const int64_t* tokens, const int32_t* sample_slots, int64_t rows,
                      Stream stream) {
  launch_chained(detect_stop_kernel, dim3(blocks_of_warps(state.slots)), kWarpsPerBlock * kWarp, 0, stream, "detect_stop", state,
                 tokens, sample_slots, rows);
}

void update_inputs_cuda(const UpdateInputsState& state, int64_t block_size, const int64_t* tokens, const int32_t* sample_slots,
                        int64_t rows, Stream stream) {
  if (state.slots > 8192) throw std::runtime_error("update_inputs: more than 8192 slots");
  const int threads = static_cast<int>(min(int64_t{kSlotThreads}, (state.slots + kWarp - 1) / kWarp * kWarp));
  launch_chained(update_inputs_kernel, dim3(1), threads, state.slots * sizeof(int), stream, "update_inputs", state,
                 block_size, tokens, sample_slots, rows);
}

void pack_outputs_cuda(const PackOutputsState& state, int64_t* landing, Stream stream) {
  launch_chained(pack_outputs_kernel, dim3((state.slots + 127) / 128), 128, 0, stream, "pack_outputs", state, landing);
}

void pack_logprobs_cuda(const PackLogprobsState& state, int64_t* landing, int64_t landing_columns, const int32_t* sample_slots,
                        const int64_t* ids, const float* logprobs, const int64_t* ranks, int64_t rows, int64_t columns,
                        Stream stream) {
  pack_logprobs_kernel<<<blocks_of_warps(state.slots), kWarpsPerBlock * kWarp, 0, stream>>>(
      state, landing, landing_columns, sample_slots, ids, logprobs, ranks, static_cast<int>(rows), columns);
  check_launch("pack_logprobs");
}

}  // namespace bireme
