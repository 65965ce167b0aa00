// Everything that changes logits before sampling.
#pragma once
#include "generated/slot_fields.h"

namespace bireme {

// logits [rows, vocab]; ids outside [0, vocab) are ignored wherever they occur.
void apply_penalties_cpu(const ApplyPenaltiesState& state, float* logits, int64_t vocab, const int32_t* sample_slots,
                         int64_t rows);

// Divides the rows of slots that sample by their temperature; those that take the largest value stay as they are.
void apply_temperature_cpu(const ApplyTemperatureState& state, float* logits, int64_t vocab, const int32_t* sample_slots,
                           int64_t rows);

}  // namespace bireme
