#include "kernels/sampling/mask_making.h"

#include <algorithm>

#include "kernels/device/thread_pool.h"

namespace bireme {
namespace {

void make_mask(MaskRow& row, int64_t words) {
  row.mask[0] = 1;
  const bool goes_on = (row.token < 0 || row.consume(row.matcher, static_cast<uint32_t>(row.token)) == 0) &&
                       row.fill(row.matcher, row.mask + 1, sizeof(int32_t) * words) == 0;
  if (goes_on) return;
  row.failed = 1;
  std::copy(row.end_words, row.end_words + words, row.mask + 1);
}

// The masks of one step.
struct MaskMaking {
  MaskRow* rows = nullptr;
  int64_t words = 0;
  SideWork work;
};

}  // namespace
}  // namespace bireme

extern "C" {

void* bireme_new_mask_making() { return new bireme::MaskMaking; }

void bireme_start_mask_making(void* making, bireme::MaskRow* rows, int64_t num_rows, int64_t words) {
  auto* const of_step = static_cast<bireme::MaskMaking*>(making);
  of_step->rows = rows;
  of_step->words = words;
  of_step->work.start(
      num_rows,
      [](void* context, int64_t row) {
        auto* const of_step = static_cast<bireme::MaskMaking*>(context);
        bireme::make_mask(of_step->rows[row], of_step->words);
      },
      of_step);
}

void bireme_finish_mask_making(void* making) { static_cast<bireme::MaskMaking*>(making)->work.finish(); }

void bireme_free_mask_making(void* making) { delete static_cast<bireme::MaskMaking*>(making); }
}
