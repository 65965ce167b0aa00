// One token a row: the largest logit, or a draw from the filtered distribution.
#pragma once
#include "generated/slot_fields.h"

namespace bireme {

constexpr float kGreedyTemperature = 1e-5f;

void sample_cpu(const SampleState& state, const float* logits, int64_t rows, int64_t vocab, const int32_t* sample_slots,
                int64_t* tokens);

}  // namespace bireme
