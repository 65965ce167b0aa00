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

template <typename From, typename To>
__device__ void copy_span(const From* from, To* to, int64_t count) {
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) to[i] = from[i];
}

// One block a request.
__global__ void insert_kernel(StateSizes sizes, InsertTarget state, const int64_t* ints, int64_t int_columns, const float* floats,
                              const int64_t* tokens, int64_t width) {
  const int64_t* in = ints + blockIdx.x * int_columns;
  const float* values = floats + blockIdx.x * (kInsertFloatColumns + sizes.logit_bias);
  const int64_t slot = in[kSlot], prefill_len = in[kPrefillLen];
  if (slot < 0 || slot >= sizes.slots) return;
  const int64_t* text = tokens + blockIdx.x * width;
  int64_t* history = state.token_ids_all + slot * sizes.max_model_len;
  for (int64_t i = threadIdx.x; i < sizes.max_model_len; i += blockDim.x) history[i] = i < prefill_len && i < width ? text[i] : -1;
  for (int64_t i = threadIdx.x; i < sizes.blocks; i += blockDim.x) state.block_tables[slot * sizes.blocks + i] = -1;
  if (threadIdx.x == 0) insert_values(state, in, values);
  in += kInsertColumns;
  copy_span(in, state.eos_token_id + slot * sizes.eos, sizes.eos);
  in += sizes.eos;
  copy_span(in, state.stop_token_ids + slot * sizes.stop_ids, sizes.stop_ids);
  in += sizes.stop_ids;
  copy_span(in, state.stop_seqs_len + slot * sizes.stop_seqs, sizes.stop_seqs);
  in += sizes.stop_seqs;
  const int64_t sequence_ids = sizes.stop_seqs * sizes.stop_seq_len;
  copy_span(in, state.stop_seqs + slot * sequence_ids, sequence_ids);
  in += sequence_ids;
  copy_span(in, state.logit_bias_ids + slot * sizes.logit_bias, sizes.logit_bias);
  copy_span(values + kInsertFloatColumns, state.logit_bias_values + slot * sizes.logit_bias, sizes.logit_bias);
}

__device__ inline void recover_slot(const int32_t* seq_lens_decoder, bool* is_block_step, const int32_t* block_tables,
                                    int64_t slot, int64_t blocks, int64_t block_size) {
  if (is_block_step[slot] && slot_has_block(block_tables + slot * blocks, blocks, block_size, seq_lens_decoder[slot])) {
    is_block_step[slot] = false;
  }
}

// One block. Updates go through shared memory, because they may lie on the host.
__global__ void apply_step_kernel(StepState state, int64_t slots, int64_t blocks, int64_t block_size, const int32_t* scheduled,
                                  const int32_t* cleared, const int32_t* block_updates, int64_t n) {
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
    recover_slot(state.seq_lens_decoder, state.is_block_step, state.block_tables, slot, blocks, block_size);
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

__global__ void recover_kernel(const int32_t* seq_lens_decoder, bool* is_block_step, const int32_t* block_tables, int64_t slots,
                               int64_t blocks, int64_t block_size) {
  const int64_t slot = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (slot < slots) recover_slot(seq_lens_decoder, is_block_step, block_tables, slot, blocks, block_size);
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
__global__ void lay_out_kernel(const int64_t* prompt_lens, const int64_t* step_idx, const int32_t* seq_lens_this_time,
                               const int32_t* seq_lens_decoder, int slots, PackedTokens out) {
  __shared__ int scratch[kWarp];
  wait_for_predecessor();
  start_successor();
  int rows = 0, sampling = 0;
  for (int start = 0; start < slots; start += blockDim.x) {
    const int slot = start + threadIdx.x;
    const bool inside = slot < slots;
    const int now = inside ? max(seq_lens_this_time[slot], 0) : 0;
    const bool samples = now > 0 && int64_t{seq_lens_decoder[slot]} + now == prompt_lens[slot] + step_idx[slot];
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

__global__ void fill_rows_kernel(const int64_t* token_ids_all, const int32_t* seq_lens_decoder, int slots, int64_t max_model_len,
                                 PackedTokens out, int rows) {
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
  const int64_t position = used ? int64_t{seq_lens_decoder[low]} + row - out.cu_seqlens_q[low] : 0;
  out.ids[row] = used && position < max_model_len ? token_ids_all[low * max_model_len + position] : 0;
  out.positions[row] = static_cast<int32_t>(position);
  out.slots[row] = used ? low : -1;
}

}  // namespace

void insert_requests_cuda(const StateSizes& sizes, const InsertTarget& state, int64_t n, const int64_t* ints, const float* floats,
                          const int64_t* tokens, int64_t width, Stream stream) {
  if (n == 0) return;
  insert_kernel<<<static_cast<unsigned>(n), 256, 0, stream>>>(sizes, state, ints, insert_int_columns(sizes), floats, tokens, width);
  check_launch("insert_requests");
}

void apply_step_cuda(const StepState& state, int64_t slots, int64_t blocks, int64_t block_size, const int32_t* scheduled,
                     const int32_t* cleared, const int32_t* block_updates, int64_t n, Stream stream) {
  apply_step_kernel<<<1, kSlotThreads, 0, stream>>>(state, slots, blocks, block_size, scheduled, cleared, block_updates, n);
  check_launch("apply_step");
}

void recover_block_cuda(const int32_t* seq_lens_decoder, bool* is_block_step, const int32_t* block_tables, int64_t slots,
                        int64_t blocks, int64_t block_size, Stream stream) {
  recover_kernel<<<static_cast<unsigned>((slots + 127) / 128), 128, 0, stream>>>(seq_lens_decoder, is_block_step, block_tables,
                                                                               slots, blocks, block_size);
  check_launch("recover_block");
}

void pack_tokens_cuda(const int64_t* token_ids_all, const int64_t* prompt_lens, const int64_t* step_idx,
                      const int32_t* seq_lens_this_time, const int32_t* seq_lens_decoder, int64_t slots, int64_t max_model_len,
                      const PackedTokens& out, int64_t rows, Stream stream) {
  launch_chained(lay_out_kernel, dim3(1), kSlotThreads, 0, stream, "pack_tokens", prompt_lens, step_idx, seq_lens_this_time,
                 seq_lens_decoder, slots, out);
  if (rows == 0) return;
  launch_chained(fill_rows_kernel, dim3((rows + 127) / 128), 128, 0, stream, "pack_tokens", token_ids_all, seq_lens_decoder, slots,
                 max_model_len, out, rows);
}

}  // namespace bireme
