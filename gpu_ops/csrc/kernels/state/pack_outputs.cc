#include "kernels/state/pack_outputs.h"

#include <algorithm>
#include <cstring>

namespace bireme {

void pack_outputs_cpu(const PackOutputsState& state, int64_t* landing) {
  *landing++ = state.slots << kSlotCountShift | (*state.not_need_stop ? kSomeSlotRuns : 0);
  for (int64_t slot = 0; slot < state.slots; ++slot) {
    *landing++ = state.num_sampled[slot] ? state.sampled_token_ids[slot] : -1;
    *landing++ = state.num_sampled[slot];
    *landing++ = state.stop_reason[slot];
    *landing++ = state.matched_stop[slot];
    *landing++ = state.seq_lens_decoder[slot];
  }
}

void pack_logprobs_cpu(const PackLogprobsState& state, int64_t* landing, int64_t landing_columns, const int32_t* sample_slots,
                       const int64_t* ids, const float* logprobs, const int64_t* ranks, int64_t rows, int64_t columns) {
  landing[0] |= kHasLogprobs;
  int64_t* block = landing + 1 + state.slots * kSlotFields;
  const int64_t width = 2 + 2 * landing_columns;
  for (int64_t slot = 0; slot < state.slots; ++slot) {
    block[slot * width] = 0;
    block[slot * width + 1] = -1;
  }
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t slot = sample_slots[row];
    if (slot < 0 || !state.num_sampled[slot] || state.num_logprobs[slot] < 0) continue;
    int64_t* out = block + slot * width;
    const int64_t count = std::min({int64_t{state.num_logprobs[slot]}, columns - 1, landing_columns - 1});
    out[0] = ranks[row];
    out[1] = count;
    for (int64_t i = 0; i <= count; ++i) {
      const double value = logprobs[row * columns + i];
      out[2 + i] = ids[row * columns + i];
      std::memcpy(&out[2 + landing_columns + i], &value, sizeof value);
    }
  }
}

}  // namespace bireme
