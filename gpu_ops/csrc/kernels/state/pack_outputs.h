// What the host reads of a step, in one block; gpu_ops/step_result.py describes the layout.
#pragma once
#include "generated/slot_fields.h"

namespace bireme {

constexpr int64_t kSlotFields = 5;
// Header bits; the number of slots stands above them.
constexpr int64_t kSomeSlotRuns = 1, kHasLogprobs = 2;
constexpr int kSlotCountShift = 2;

void pack_outputs_cpu(const PackOutputsState& state, int64_t* landing);

// landing_columns: alternatives a slot has room for (chosen token included); columns: what ids and logprobs hold.
void pack_logprobs_cpu(const PackLogprobsState& state, int64_t* landing, int64_t landing_columns, const int32_t* sample_slots,
                       const int64_t* ids, const float* logprobs, const int64_t* ranks, int64_t rows, int64_t columns);

}  // namespace bireme
