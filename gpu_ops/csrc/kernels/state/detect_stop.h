// Stop detection, on the token just sampled.
#pragma once
#include "generated/slot_fields.h"

namespace bireme {

// The values of the Python enum StopReason.
enum StopReason : int32_t { kNoStop = 0, kStopEos = 1, kStopToken = 2, kStopSequence = 3, kStopLength = 4 };

void detect_stop_cpu(const DetectStopState& state, const int64_t* tokens, const int32_t* sample_slots, int64_t rows);

}  // namespace bireme
