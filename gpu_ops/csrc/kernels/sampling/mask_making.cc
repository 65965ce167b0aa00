#include "kernels/sampling/mask_making.h"

#include <algorithm>

#include "kernels/device/thread_pool.h"

namespace bireme {
namespace {

void make_mask(const MaskOfRow& row, int64_t words) {
  MaskMaker& maker = *row.maker;
  row.mask[0] = 1;
  if (!maker.has_failed && maker.token >= 0) maker.has_failed = maker.consume(maker.matcher, static_cast<uint32_t>(maker.token)) != 0;
  maker.token = -1;
  if (!maker.has_failed) maker.has_failed = maker.fill(maker.matcher, row.mask + 1, sizeof(int32_t) * words) != 0;
  if (maker.has_failed) std::copy(maker.end_words, maker.end_words + words, row.mask + 1);
}

// The masks of one step.
struct MaskMaking {
  const MaskOfRow* rows = nullptr;
  int64_t words = 0;
  SideWork work;
};

}  // namespace
}  // namespace bireme

extern "C" {

void* bireme_new_mask_making() { return new bireme::MaskMaking; }

void bireme_start_mask_making(void* making, const bireme::MaskOfRow* rows, int64_t num_rows, int64_t words) {
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
