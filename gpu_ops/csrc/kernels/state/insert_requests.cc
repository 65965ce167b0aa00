#include "kernels/state/insert_requests.h"

#include <algorithm>

namespace bireme {

const char* insert_request_fault(const StateSizes& sizes, const int64_t* ints, int64_t width) {
  const auto within = [&](InsertColumn column, int64_t low, int64_t high) { return ints[column] >= low && ints[column] <= high; };
  if (!within(kSlot, 0, sizes.slots - 1)) return "slot";
  if (!within(kPromptLen, 1, sizes.max_model_len)) return "prompt_len";
  if (!within(kPrefillLen, 1, std::min(sizes.max_model_len, width))) return "prefill_len";
  if (ints[kStepIdx] < 0 || ints[kStepIdx] != ints[kPrefillLen] - ints[kPromptLen]) return "step_idx";
  if (!within(kNumComputed, 0, ints[kPrefillLen] - 1)) return "num_computed";
  if (!within(kTopK, 0, INT32_MAX)) return "top_k";
  if (!within(kNumLogprobs, -1, INT32_MAX)) return "num_logprobs";
  const int64_t* lengths = ints + kInsertColumns + sizes.eos + sizes.stop_ids;
  for (int64_t i = 0; i < sizes.stop_seqs; ++i) {
    if (lengths[i] < 0 || lengths[i] > sizes.stop_seq_len) return "stop_seqs_len";
  }
  return nullptr;
}

namespace {

// Takes the next `count` values of a row, and moves on.
template <typename From, typename To>
void take(const From*& from, To* rows, int64_t slot, int64_t count) {
  std::copy_n(from, count, rows + slot * count);
  from += count;
}

}  // namespace

void insert_requests_cpu(const StateSizes& sizes, const InsertTarget& state, int64_t n, const int64_t* ints, const float* floats,
                         const int64_t* tokens, int64_t width) {
  for (int64_t row = 0; row < n; ++row) {
    const int64_t* in = ints + row * insert_int_columns(sizes);
    const float* values = floats + row * (kInsertFloatColumns + sizes.logit_bias);
    const int64_t slot = in[kSlot];

    int64_t* history = state.token_ids_all + slot * sizes.max_model_len;
    std::copy_n(tokens + row * width, in[kPrefillLen], history);
    std::fill(history + in[kPrefillLen], history + sizes.max_model_len, -1);
    std::fill_n(state.block_tables + slot * sizes.blocks, sizes.blocks, -1);

    insert_values(state, in, values);

    in += kInsertColumns;
    take(in, state.eos_token_id, slot, sizes.eos);
    take(in, state.stop_token_ids, slot, sizes.stop_ids);
    take(in, state.stop_seqs_len, slot, sizes.stop_seqs);
    take(in, state.stop_seqs, slot, sizes.stop_seqs * sizes.stop_seq_len);
    take(in, state.logit_bias_ids, slot, sizes.logit_bias);

    values += kInsertFloatColumns;
    take(values, state.logit_bias_values, slot, sizes.logit_bias);
  }
}

}  // namespace bireme
