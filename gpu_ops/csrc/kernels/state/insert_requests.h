// New requests enter their slots.
#pragma once
#include "generated/slot_fields.h"

namespace bireme {

// The value of row `ints` that is out of range as a name, or null. `width`: tokens a row of the caller holds.
const char* insert_request_fault(const InsertRequestsState& state, const int64_t* ints, int64_t width);

// n rows of insert_int_columns, insert_float_columns and `width` tokens; every row must have passed insert_request_fault.
void insert_requests_cpu(const InsertRequestsState& state, int64_t n, const int64_t* ints, const float* floats,
                         const int64_t* tokens, int64_t width);

}  // namespace bireme
