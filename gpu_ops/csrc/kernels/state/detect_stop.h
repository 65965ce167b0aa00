// Stop detection, on the token just sampled.
#pragma once
#include <cstdint>

namespace bireme {

// The values of the Python enum StopReason.
enum StopReason : int32_t { kNoStop = 0, kStopEos = 1, kStopToken = 2, kStopSequence = 3, kStopLength = 4 };

struct StopState {
  int64_t slots, max_model_len, eos_ids, stop_ids, seqs_per_slot, seq_len;  // sizes
  const int64_t *token_ids_all, *prompt_lens, *step_idx;
  bool* stop_flags;
  int32_t* stop_reason;
  int64_t* matched_stop;
  const int64_t *eos_token_id, *stop_token_ids, *stop_seqs;
  const int32_t* stop_seqs_len;
  const int64_t *min_dec_len, *max_dec_len;
};

void detect_stop_cpu(const StopState& state, const int64_t* tokens, const int32_t* sample_slots, int64_t rows);

}  // namespace bireme
