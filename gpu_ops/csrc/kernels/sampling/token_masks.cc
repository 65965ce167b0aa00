#include "kernels/sampling/token_masks.h"

#include <algorithm>
#include <limits>

namespace bireme {
namespace {

constexpr float kForbidden = -std::numeric_limits<float>::infinity();

// Returns whether an allowed token is left.
bool mask_row(float* logits, int64_t vocab, const uint32_t* words) {
  bool left = false;
  for (int64_t first = 0; first < vocab; first += 32) {
    const uint32_t word = words[first / 32];
    float* const chunk = logits + first;
    const int64_t count = std::min<int64_t>(32, vocab - first);
    if (word == 0) {
      std::fill(chunk, chunk + count, kForbidden);
      continue;
    }
    for (int64_t i = 0; i < count; ++i) {
      const bool allowed = word >> i & 1;
      chunk[i] = allowed ? chunk[i] : kForbidden;
      left |= allowed && chunk[i] > kForbidden;
    }
  }
  return left;
}

}  // namespace

void apply_token_masks_cpu(float* logits, int64_t vocab, const int32_t* masks, const int32_t* sample_slots, int64_t rows) {
  for (int64_t row = 0; row < rows; ++row, logits += vocab) {
    if (sample_slots[row] < 0) continue;
    const auto* mask = reinterpret_cast<const uint32_t*>(masks + sample_slots[row] * mask_words(vocab));
    if (mask[0] == 0 || mask_row(logits, vocab, mask + 1)) continue;
    for (int64_t i = 0; i < vocab; ++i) {
      if (mask[1 + i / 32] >> i % 32 & 1) logits[i] = 0.0f;
    }
  }
}

}  // namespace bireme
