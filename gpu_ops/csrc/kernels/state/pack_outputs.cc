#include "kernels/state/pack_outputs.h"

#include <algorithm>
#include <cstring>

namespace bireme {

void pack_outputs_cpu(const int32_t* seq_lens_decoder, const int64_t* sampled_token_ids, const int32_t* num_sampled,
                      const int32_t* stop_reason, const int64_t* matched_stop, bool not_need_stop, int64_t slots,
                      int64_t* landing) {
  *landing++ = slots << kSlotCountShift | (not_need_stop ? kSomeSlotRuns : 0);
  for (int64_t slot = 0; slot < slots; ++slot) {
    *landing++ = num_sampled[slot] ? sampled_token_ids[slot] : -1;
    *landing++ = num_sampled[slot];
    *landing++ = stop_reason[slot];
    *landing++ = matched_stop[slot];
    *landing++ = seq_lens_decoder[slot];
  }
}

void pack_logprobs_cpu(const int32_t* num_sampled, const int32_t* num_logprobs, int64_t slots, int64_t* landing,
                       int64_t landing_columns, const int32_t* sample_slots, const int64_t* ids, const float* logprobs,
                       const int64_t* ranks, int64_t rows, int64_t columns) {
  landing[0] |= kHasLogprobs;
  int64_t* block = landing + 1 + slots * kSlotFields;
  const int64_t width = 2 + 2 * landing_columns;
  for (int64_t slot = 0; slot < slots; ++slot) {
    block[slot * width] = 0;
    block[slot * width + 1] = -1;
  }
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t slot = sample_slots[row];
    if (slot < 0 || !num_sampled[slot] || num_logprobs[slot] < 0) continue;
    int64_t* out = block + slot * width;
    const int64_t count = std::min({int64_t{num_logprobs[slot]}, columns - 1, landing_columns - 1});
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
