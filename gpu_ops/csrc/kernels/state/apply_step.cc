#include "kernels/state/apply_step.h"

#include <algorithm>

namespace bireme {
namespace {

bool has_blocks(const int32_t* block_table, int64_t blocks, int64_t block_size, int64_t first, int64_t last) {
  for (int64_t block = first / block_size; block <= last / block_size; ++block) {
    if (!has_block(block_table, blocks, block_size, block * block_size)) return false;
  }
  return true;
}

template <typename State>
void recover(const State& state, int64_t block_size) {
  for (int64_t slot = 0; slot < state.slots; ++slot) {
    const int32_t* table = state.block_tables + slot * state.blocks;
    if (state.is_block_step[slot] && has_block(table, state.blocks, block_size, state.seq_lens_decoder[slot])) {
      state.is_block_step[slot] = false;
    }
  }
}

}  // namespace

void recover_block_cpu(const RecoverBlockState& state, int64_t block_size) { recover(state, block_size); }

void apply_step_cpu(const ApplyStepState& state, int64_t block_size, const int32_t* scheduled, const int32_t* cleared,
                    const int32_t* block_updates, int64_t n) {
  const int64_t slots = state.slots, blocks = state.blocks;
  for (int64_t slot = 0; slot < slots; ++slot) {
    if (!cleared[slot]) continue;
    std::fill_n(state.block_tables + slot * blocks, blocks, -1);
    state.stop_flags[slot] = true;
    state.is_block_step[slot] = false;
    state.seq_lens_this_time[slot] = state.seq_lens_encoder[slot] = state.seq_lens_decoder[slot] = 0;
  }
  for (int64_t i = 0; i < n; ++i) {
    const int32_t* update = block_updates + 3 * i;
    state.block_tables[update[0] * blocks + update[1]] = update[2];
  }
  recover(state, block_size);

  for (int64_t slot = 0; slot < slots; ++slot) {
    const int64_t computed = state.seq_lens_decoder[slot];
    const int64_t left = state.prompt_lens[slot] + state.step_idx[slot] - computed;
    const bool runs = !state.stop_flags[slot] && !state.is_block_step[slot];
    int64_t now = runs ? std::clamp<int64_t>(scheduled[slot], 0, std::max<int64_t>(left, 0)) : 0;
    const int32_t* table = state.block_tables + slot * blocks;
    if (now > 0 && !has_blocks(table, blocks, block_size, computed, computed + now - 1)) {
      state.is_block_step[slot] = true;
      now = 0;
    }
    state.seq_lens_this_time[slot] = static_cast<int32_t>(now);
    state.seq_lens_encoder[slot] = static_cast<int32_t>(std::clamp<int64_t>(state.prefill_lens[slot] - computed, 0, now));
  }
}

}  // namespace bireme
