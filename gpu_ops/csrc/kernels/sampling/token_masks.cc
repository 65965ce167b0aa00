#include "kernels/sampling/token_masks.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "kernels/device/thread_pool.h"

namespace bireme {
namespace {

constexpr float kForbidden = -std::numeric_limits<float>::infinity();
constexpr uint32_t kAll = 0xffffffff;
// A row takes microseconds: a thread is woken for several.
constexpr int64_t kRowsAThread = 4;

// Vector types of the compiler: it lowers them to what the processor has.
typedef float Float8 __attribute__((vector_size(32)));
typedef int32_t Int8 __attribute__((vector_size(32)));

// Eight tokens, of which `byte` allows some. Lanes of `left` where an allowed token is left become -1.
inline void mask_eight(float* logits, int32_t byte, Int8& left) {
  const Int8 bit = {1, 2, 4, 8, 16, 32, 64, 128};
  const Int8 allowed = (bit & byte) != 0;
  const Float8 forbidden = Float8{} + kForbidden;
  Float8 values;
  std::memcpy(&values, logits, sizeof values);
  left |= (values > forbidden) & allowed;
  const Int8 bits = ((Int8)values & allowed) | ((Int8)forbidden & ~allowed);
  std::memcpy(logits, &bits, sizeof bits);
}

// Returns whether an allowed token is left.
bool mask_word(float* logits, uint32_t word) {
  Int8 left = {};
  for (int byte = 0; byte < 4; ++byte) mask_eight(logits + 8 * byte, word >> 8 * byte & 0xff, left);
  int32_t any = 0;
  for (int lane = 0; lane < 8; ++lane) any |= left[lane];
  return any != 0;
}

bool mask_row(float* logits, int64_t vocab, const uint32_t* words) {
  bool left = false;
  const int64_t whole = vocab / 32;
  for (int64_t i = 0; i < whole; ++i) {
    float* const chunk = logits + 32 * i;
    // Most words of most masks allow all or nothing.
    if (words[i] == 0) {
      std::fill(chunk, chunk + 32, kForbidden);
    } else if (words[i] != kAll || !left) {
      left |= mask_word(chunk, words[i]);
    }
  }
  for (int64_t i = 32 * whole; i < vocab; ++i) {
    const bool allowed = words[whole] >> i % 32 & 1;
    logits[i] = allowed ? logits[i] : kForbidden;
    left |= allowed && logits[i] > kForbidden;
  }
  return left;
}

}  // namespace

void apply_token_masks_cpu(float* logits, int64_t vocab, const int32_t* masks, const int32_t* sample_slots, int64_t rows) {
  parallel_for(rows, kRowsAThread, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      if (sample_slots[row] < 0) continue;
      float* const of_row = logits + row * vocab;
      const auto* mask = reinterpret_cast<const uint32_t*>(masks + sample_slots[row] * mask_words(vocab));
      if (mask[0] == 0 || mask_row(of_row, vocab, mask + 1)) continue;
      for (int64_t i = 0; i < vocab; ++i) {
        if (mask[1 + i / 32] >> i % 32 & 1) of_row[i] = 0.0f;
      }
    }
  });
}

}  // namespace bireme
