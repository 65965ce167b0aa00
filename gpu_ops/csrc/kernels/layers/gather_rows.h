// Rows of a matrix by index.
#pragma once
#include <cstdint>

namespace bireme {

// out[r] = source[rows[r]]; an index outside [0, source_rows) gives zeros.
void gather_rows_cpu(const float* source, int64_t source_rows, int64_t width, const int32_t* rows, int64_t n, float* out);

}  // namespace bireme
