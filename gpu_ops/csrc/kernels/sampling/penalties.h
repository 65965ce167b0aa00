// Everything that changes logits before sampling.
#pragma once
#include <cstdint>

namespace bireme {

struct PenaltyState {
  int64_t max_model_len, eos_ids, stop_ids, biases;  // sizes
  const int64_t *token_ids_all, *prompt_lens, *step_idx, *eos_token_id, *stop_token_ids, *min_dec_len;
  const float *penalty_score, *presence_score, *frequency_score;
  const int64_t* logit_bias_ids;
  const float* logit_bias_values;
};

// logits [rows, vocab]; ids outside [0, vocab) are ignored wherever they occur.
void apply_penalties_cpu(const PenaltyState& state, float* logits, int64_t vocab, const int32_t* sample_slots, int64_t rows);

}  // namespace bireme
