// The end of a step: history and lengths advance, slots without a next block pause.
#pragma once
#include <cstdint>

namespace bireme {

struct UpdateState {
  int64_t slots, max_model_len, blocks, block_size;  // sizes
  int64_t* token_ids_all;
  const int64_t* prompt_lens;
  int64_t* step_idx;
  int32_t *seq_lens_this_time, *seq_lens_encoder, *seq_lens_decoder;
  const bool* stop_flags;
  bool* is_block_step;
  const int32_t* block_tables;
  int64_t* sampled_token_ids;
  int32_t* num_sampled;
  bool* not_need_stop;
};

void update_inputs_cpu(const UpdateState& state, const int64_t* tokens, const int32_t* sample_slots, int64_t rows);

}  // namespace bireme
