// Slots: how requests enter them, and how a step begins.
#include "kernels/state/cuda/state.h"

#include "kernels/device/cuda/chained_launch.cuh"

namespace bireme {
namespace {

constexpr int kSlotThreads = 1024;  // kernels of one block walk over all slots

__device__ inline bool slot_has_block(const int32_t* table, int64_t blocks, int64_t block_size, int64_t position) {
  const int64_t index = position / block_size;
  return index < blocks && table[index] >= 0;
}

// One block a request.
__global__ void insert_kernel(InsertRequestsState state, const int64_t* ints, const float* floats, const int64_t* tokens,
                              int64_t width) {
  const int64_t* in = ints + blockIdx.x * insert_int_columns(state);
  const float* values = floats + blockIdx.x * insert_float_columns(state);
  const int64_t slot = in[insert_ints::kSlot], prefill_len = in[insert_ints::kPrefillLen];
  if (slot < 0 || slot >= state.slots) return;
  const int64_t* text = tokens + blockIdx.x * width;
  int64_t* history = state.token_ids_all + slot * state.max_model_len;
  for (int64_t i = threadIdx.x; i < state.max_model_len; i += blockDim.x) history[i] = i < prefill_len && i < width ? text[i] : -1;
  if (threadIdx.x == 0) insert_values(state, in, values);
  insert_rows(state, in, values, threadIdx.x, blockDim.x);
}

template <typename State>
__device__ void recover_slot(const State& state, int64_t slot, int64_t block_size) {
  const int32_t* table = state.block_tables + slot * state.blocks;
  if (state.is_block_step[slot] && slot_has_block(table, state.blocks, block_size, state.seq_lens_decoder[slot])) {
    state.is_block_step[slot] = false;
  }
}

// One block. Updates go through shared memory, because they may lie on the host.
__global__ void apply_step_kernel(ApplyStepState state, int64_t block_size, const int32_t* scheduled, const int32_t* cleared,
                                  const int32_t* block_updates, int64_t n) {
  const int64_t slots = state.slots, blocks = state.blocks;
  constexpr int kStaged = 1024;
  __shared__ int32_t staged[kStaged][3];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, warps = blockDim.x / kWarp;
  for (int64_t slot = warp; slot < slots; slot += warps) {
    if (!cleared[slot]) continue;
    for (int64_t i = lane; i < blocks; i += kWarp) state.block_tables[slot * blocks + i] = -1;
    if (lane == 0) {
      state.stop_flags[slot] = true;
      state.is_block_step[slot] = false;
      state.seq_lens_this_time[slot] = state.seq_lens_encoder[slot] = state.seq_lens_decoder[slot] = 0;
    }
  }
  for (int64_t start = 0; start < n; start += kStaged) {
    const int count = static_cast<int>(min(n - start, int64_t{kStaged}));
    __syncthreads();
    for (int i = threadIdx.x; i < 3 * count; i += blockDim.x) (&staged[0][0])[i] = block_updates[3 * start + i];
    __syncthreads();
    // A table entry belongs to one thread, which sees its updates in order: the last one stays.
    for (int i = 0; i < count; ++i) {
      const int64_t slot = staged[i][0], index = staged[i][1], entry = slot * blocks + index;
      if (slot < 0 || slot >= slots || index < 0 || index >= blocks || entry % blockDim.x != threadIdx.x) continue;
      state.block_tables[entry] = staged[i][2];
    }
  }
  __syncthreads();
  for (int64_t slot = threadIdx.x; slot < slots; slot += blockDim.x) {
    recover_slot(state, slot, block_size);
    const int64_t computed = state.seq_lens_decoder[slot];
    const int64_t left = max(state.prompt_lens[slot] + state.step_idx[slot] - computed, int64_t{0});
    const bool runs = !state.stop_flags[slot] && !state.is_block_step[slot];
    int64_t now = runs ? min(max(int64_t{scheduled[slot]}, int64_t{0}), left) : 0;
    for (int64_t position = computed / block_size * block_size; now > 0 && position < computed + now; position += block_size) {
      if (slot_has_block(state.block_tables + slot * blocks, blocks, block_size, position)) continue;
      state.is_block_step[slot] = true;
      now = 0;
    }
    state.seq_lens_this_time[slot] = static_cast<int32_t>(now);
    state.seq_lens_encoder[slot] = static_cast<int32_t>(min(max(state.prefill_lens[slot] - computed, int64_t{0}), now));
  }
}

__global__ void recover_kernel(RecoverBlockState state, int64_t block_size) {
  const int64_t slot = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (slot < state.slots) recover_slot(state, slot, block_size);
}

// Inclusive prefix sum over a block of whole warps; `total` is that of the block. `scratch` holds 32.
__device__ int block_prefix(int value, int* scratch, int* total) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  int sum = warp_prefix(value);
  __syncthreads();
  if (lane == kWarp - 1) scratch[warp] = sum;
  __syncthreads();
  const int of_warps = warp_prefix(lane < warps ? scratch[lane] : 0);
  const int before = __shfl_sync(kAllLanes, of_warps, max(warp - 1, 0));
  *total = __shfl_sync(kAllLanes, of_warps, warps - 1);
  return sum + (warp ? before : 0);
}

// One block: where each slot's rows begin, and which slots sample.
__global__ void lay_out_kernel(PackTokensState state, PackedTokens out) {
  __shared__ int scratch[kWarp];
  const int slots = static_cast<int>(state.slots);
  wait_for_predecessor();
  start_successor();
  int rows = 0, sampling = 0;
  for (int start = 0; start < slots; start += blockDim.x) {
    const int slot = start + threadIdx.x;
    const bool inside = slot < slots;
    const int now = inside ? max(state.seq_lens_this_time[slot], 0) : 0;
    const bool samples = now > 0 && int64_t{state.seq_lens_decoder[slot]} + now == state.prompt_lens[slot] + state.step_idx[slot];
    int total, total_sampling;
    const int end = rows + block_prefix(now, scratch, &total);
    const int index = sampling + block_prefix(samples, scratch, &total_sampling) - 1;
    if (inside) out.cu_seqlens_q[slot] = end - now;
    if (samples) {
      out.sample_rows[index] = end - 1;
      out.sample_slots[index] = slot;
    }
    rows += total;
    sampling += total_sampling;
  }
  for (int i = sampling + threadIdx.x; i < slots; i += blockDim.x) out.sample_rows[i] = out.sample_slots[i] = -1;
  if (threadIdx.x == 0) {
    out.cu_seqlens_q[slots] = rows;
    out.counts[0] = rows;
    out.counts[1] = sampling;
  }
}

__global__ void fill_rows_kernel(PackTokensState state, PackedTokens out, int rows) {
  const int slots = static_cast<int>(state.slots);
  wait_for_predecessor();
  start_successor();
  const int row = blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= rows) return;
  const bool used = row < out.cu_seqlens_q[slots];
  int low = 0, high = slots - 1;  // the last slot that begins at or before the row: slots without rows end before it
  while (used && low < high) {
    const int middle = (low + high + 1) / 2;
    if (out.cu_seqlens_q[middle] <= row) low = middle; else high = middle - 1;
  }
  const int64_t position = used ? int64_t{state.seq_lens_decoder[low]} + row - out.cu_seqlens_q[low] : 0;
  out.ids[row] = used && position < state.max_model_len ? state.token_ids_all[low * state.max_model_len + position] : 0;
  out.positions[row] = static_cast<int32_t>(position);
  out.slots[row] = used ? low : -1;
}

}  // namespace

void insert_requests_cuda(const InsertRequestsState& state, int64_t n, const int64_t* ints, const float* floats,
                          const int64_t* tokens, int64_t width, Stream stream) {
  if (n == 0) return;
  insert_kernel<<<static_cast<unsigned>(n), 256, 0, stream>>>(state, ints, floats, tokens, width);
  check_launch("insert_requests");
}

void apply_step_cuda(const ApplyStepState& state, int64_t block_size, const int32_t* scheduled, const int32_t* cleared,
                     const int32_t* block_updates, int64_t n, Stream stream) {
  apply_step_kernel<<<1, kSlotThreads, 0, stream>>>(state, block_size, scheduled, cleared, block_updates, n);
  check_launch("apply_step");
}

void recover_block_cuda(const RecoverBlockState& state, int64_t block_size, Stream stream) {
  recover_kernel<<<static_cast<unsigned>((state.slots + 127) / 128), 128, 0, stream>>>(state, block_size);
  check_launch("recover_block");
}

void pack_tokens_cuda(const PackTokensState& state, const PackedTokens& out, int64_t rows, Stream stream) {
  launch_chained(lay_out_kernel, dim3(1), kSlotThreads, 0, stream, "pack_tokens", state, out);
  if (rows == 0) return;
  launch_chained(fill_rows_kernel, dim3((rows + 127) / 128), 128, 0, stream, "pack_tokens", state, out, rows);
}

}  // namespace bireme
