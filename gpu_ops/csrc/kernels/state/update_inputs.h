// The end of a step: history and lengths advance, slots without a next block pause.
#pragma once
#include "generated/slot_fields.h"

namespace bireme {

void update_inputs_cpu(const UpdateInputsState& state, int64_t block_size, const int64_t* tokens, const int32_t* sample_slots,
                       int64_t rows);

}  // namespace bireme
