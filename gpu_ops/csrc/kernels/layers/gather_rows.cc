#include "kernels/layers/gather_rows.h"

#include <algorithm>

namespace bireme {

void gather_rows_cpu(const float* source, int64_t source_rows, int64_t width, const int32_t* rows, int64_t n, float* out) {
  for (int64_t r = 0; r < n; ++r, out += width) {
    if (rows[r] >= 0 && rows[r] < source_rows) {
      std::copy_n(source + rows[r] * width, width, out);
    } else {
      std::fill_n(out, width, 0.0f);
    }
  }
}

}  // namespace bireme
