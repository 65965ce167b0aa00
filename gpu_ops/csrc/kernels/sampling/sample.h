// One token a row: the largest logit, or a draw from the filtered distribution.
#pragma once
#include "generated/slot_fields.h"

namespace bireme {

constexpr float kGreedyTemperature = 1e-5f;

// masks: as of apply_token_masks_cpu, to apply first; or null. What the logits of masked rows are afterwards is nobody's business.
void sample_cpu(const SampleState& state, float* logits, int64_t rows, int64_t vocab, const int32_t* sample_slots,
                const int32_t* masks, int64_t* tokens);

}  // namespace bireme
