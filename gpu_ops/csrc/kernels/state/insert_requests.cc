#include "kernels/state/insert_requests.h"

#include <algorithm>

namespace bireme {

const char* insert_request_fault(const InsertRequestsState& state, const int64_t* ints, int64_t width) {
  using namespace insert_ints;
  const auto within = [&](int64_t column, int64_t low, int64_t high) { return ints[column] >= low && ints[column] <= high; };
  if (!within(kSlot, 0, state.slots - 1)) return "slot";
  if (!within(kPromptLen, 1, state.max_model_len)) return "prompt_len";
  if (!within(kPrefillLen, 1, std::min(state.max_model_len, width))) return "prefill_len";
  if (ints[kStepIdx] < 0 || ints[kStepIdx] != ints[kPrefillLen] - ints[kPromptLen]) return "step_idx";
  if (!within(kNumComputed, 0, ints[kPrefillLen] - 1)) return "num_computed";
  if (!within(kTopK, 0, INT32_MAX)) return "top_k";
  if (!within(kLogprobs, -1, INT32_MAX)) return "num_logprobs";
  const int64_t* lengths = ints + stop_seqs_len_column(state);
  for (int64_t i = 0; i < state.num_stop_seqs; ++i) {
    if (lengths[i] < 0 || lengths[i] > state.stop_seq_len) return "stop_seqs_len";
  }
  return nullptr;
}

void insert_requests_cpu(const InsertRequestsState& state, int64_t n, const int64_t* ints, const float* floats,
                         const int64_t* tokens, int64_t width) {
  for (int64_t row = 0; row < n; ++row) {
    const int64_t slot = ints[insert_ints::kSlot], prefill_len = ints[insert_ints::kPrefillLen];
    int64_t* history = state.token_ids_all + slot * state.max_model_len;
    std::copy_n(tokens, prefill_len, history);
    std::fill(history + prefill_len, history + state.max_model_len, -1);
    insert_values(state, ints, floats);
    insert_rows(state, ints, floats, 0, 1);
    ints += insert_int_columns(state);
    floats += insert_float_columns(state);
    tokens += width;
  }
}

}  // namespace bireme
