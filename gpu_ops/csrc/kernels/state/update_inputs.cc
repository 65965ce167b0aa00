#include "kernels/state/update_inputs.h"

#include <algorithm>

#include "kernels/state/apply_step.h"

namespace bireme {
namespace {

void append_tokens(const UpdateInputsState& state, const int64_t* tokens, const int32_t* sample_slots, int64_t rows) {
  std::fill_n(state.num_sampled, state.slots, 0);
  std::fill_n(state.sampled_token_ids, state.slots, -1);
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t slot = sample_slots[row];
    if (slot < 0) continue;
    const int64_t position = state.prompt_lens[slot] + state.step_idx[slot];
    if (position < state.max_model_len) state.token_ids_all[slot * state.max_model_len + position] = tokens[row];
    state.step_idx[slot] += 1;
    state.sampled_token_ids[slot] = tokens[row];
    state.num_sampled[slot] = 1;
  }
}

}  // namespace

void update_inputs_cpu(const UpdateInputsState& state, int64_t block_size, const int64_t* tokens, const int32_t* sample_slots,
                       int64_t rows) {
  append_tokens(state, tokens, sample_slots, rows);
  bool any_runs = false;
  for (int64_t slot = 0; slot < state.slots; ++slot) {
    const bool computed = state.seq_lens_this_time[slot] > 0, stopped = state.stop_flags[slot];
    const int64_t length = state.seq_lens_decoder[slot] += state.seq_lens_this_time[slot];
    if (!stopped && !has_block(state.block_tables + slot * state.blocks, state.blocks, block_size, length)) {
      state.is_block_step[slot] = true;
    }
    if (computed) {
      const bool decodes = length == state.prompt_lens[slot] + state.step_idx[slot] - 1;
      state.seq_lens_this_time[slot] = !stopped && !state.is_block_step[slot] && decodes;
      state.seq_lens_encoder[slot] = 0;
    }
    any_runs = any_runs || (!stopped && state.prompt_lens[slot] > 0);
  }
  *state.not_need_stop = any_runs;
}

}  // namespace bireme
