#include "kernels/state/detect_stop.h"

#include <algorithm>

namespace bireme {
namespace {

struct Stop {
  StopReason reason;
  int64_t matched;
};

bool contains(const int64_t* ids, int64_t count, int64_t token) { return std::find(ids, ids + count, token) != ids + count; }

// Whether `sequence` is the tail of the generated tokens with `token` appended. The token is not in the history yet:
// looking only there would make every sequence fire one token late.
bool ends_with(const int64_t* generated, int64_t count, int64_t token, const int64_t* sequence, int64_t length) {
  if (length < 1 || length > count + 1 || sequence[length - 1] != token) return false;
  return std::equal(sequence, sequence + length - 1, generated + count - (length - 1));
}

Stop find_stop(const DetectStopState& state, int64_t slot, int64_t token) {
  const int64_t prompt = state.prompt_lens[slot], before = state.step_idx[slot], generated = before + 1;
  if (generated > state.min_dec_len[slot] && token >= 0) {
    if (contains(state.eos_token_id + slot * state.eos_ids, state.eos_ids, token)) return {kStopEos, token};
    if (contains(state.stop_token_ids + slot * state.stop_ids, state.stop_ids, token)) return {kStopToken, token};
    const int64_t* history = state.token_ids_all + slot * state.max_model_len + prompt;
    for (int64_t i = 0; i < state.num_stop_seqs; ++i) {
      const int64_t index = slot * state.num_stop_seqs + i;
      if (ends_with(history, before, token, state.stop_seqs + index * state.stop_seq_len, state.stop_seqs_len[index])) {
        return {kStopSequence, i};
      }
    }
  }
  if (generated >= state.max_dec_len[slot] || prompt + generated >= state.max_model_len) return {kStopLength, -1};
  return {kNoStop, -1};
}

}  // namespace

void detect_stop_cpu(const DetectStopState& state, const int64_t* tokens, const int32_t* sample_slots, int64_t rows) {
  std::fill_n(state.stop_reason, state.slots, kNoStop);
  std::fill_n(state.matched_stop, state.slots, -1);
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t slot = sample_slots[row];
    if (slot < 0) continue;
    const Stop stop = find_stop(state, slot, tokens[row]);
    state.stop_reason[slot] = stop.reason;
    state.matched_stop[slot] = stop.matched;
    if (stop.reason != kNoStop) state.stop_flags[slot] = true;
  }
}

}  // namespace bireme
