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

// The lanes of eight tokens that `byte` allows.
inline Int8 allowed_lanes(int32_t byte) {
  const Int8 bit = {1, 2, 4, 8, 16, 32, 64, 128};
  return (bit & byte) != 0;
}

inline Float8 load_eight(const float* from) {
  Float8 values;
  std::memcpy(&values, from, sizeof values);
  return values;
}

// Eight tokens, of which `byte` allows some. Lanes of `left` where an allowed token is left become -1.
inline void mask_eight(float* logits, int32_t byte, Int8& left) {
  const Int8 allowed = allowed_lanes(byte);
  const Float8 forbidden = Float8{} + kForbidden;
  const Float8 values = load_eight(logits);
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

// Largest values of the lanes, of what whole words [begin, end) allow; a NaN counts for nothing.
float largest_of_words(const float* logits, const uint32_t* words, int64_t begin, int64_t end) {
  const Float8 lowest = Float8{} + kForbidden;
  Float8 best[4] = {lowest, lowest, lowest, lowest};
  for (int64_t i = begin; i < end; ++i) {
    if (words[i] == 0) continue;
    for (int byte = 0; byte < 4; ++byte) {
      const Float8 values = load_eight(logits + 32 * i + 8 * byte);
      Int8 larger = values > best[byte];
      if (words[i] != kAll) larger &= allowed_lanes(words[i] >> 8 * byte & 0xff);
      best[byte] = (Float8)(((Int8)values & larger) | ((Int8)best[byte] & ~larger));
    }
  }
  float largest = kForbidden;
  for (const Float8& of_byte : best) {
    for (int lane = 0; lane < 8; ++lane) largest = std::max(largest, of_byte[lane]);
  }
  return largest;
}

inline bool allows(const uint32_t* words, int64_t token) { return words[token / 32] >> token % 32 & 1; }

}  // namespace

bool is_masked(const int32_t* mask) { return mask[0] != 0; }

void apply_token_mask(float* logits, int64_t vocab, const int32_t* mask) {
  const auto* words = reinterpret_cast<const uint32_t*>(mask + 1);
  if (mask[0] == 0 || mask_row(logits, vocab, words)) return;
  for (int64_t i = 0; i < vocab; ++i) {
    if (allows(words, i)) logits[i] = 0.0f;
  }
}

int64_t masked_argmax(const float* logits, int64_t vocab, const int32_t* mask) {
  const auto* words = reinterpret_cast<const uint32_t*>(mask + 1);
  constexpr int64_t kBlock = 32;  // words; only the one with the largest is looked through again
  const int64_t whole = vocab / 32;
  float best = kForbidden;
  int64_t begin = 0, end = vocab;
  for (int64_t block = 0; block < whole; block += kBlock) {
    const int64_t last = std::min(block + kBlock, whole);
    const float largest = largest_of_words(logits, words, block, last);
    if (largest > best) best = largest, begin = 32 * block, end = 32 * last;
  }
  for (int64_t i = 32 * whole; i < vocab; ++i) {
    if (allows(words, i) && logits[i] > best) best = logits[i], begin = i, end = i + 1;
  }
  // Where nothing is left but what something else forbids, all that the mask allows is as good.
  for (int64_t i = begin; i < end; ++i) {
    if (allows(words, i) && (logits[i] == best || best == kForbidden)) return i;
  }
  return 0;
}

void apply_token_masks_cpu(float* logits, int64_t vocab, const int32_t* masks, const int32_t* sample_slots, int64_t rows) {
  parallel_for(rows, kRowsAThread, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      if (sample_slots[row] >= 0) apply_token_mask(logits + row * vocab, vocab, masks + sample_slots[row] * mask_words(vocab));
    }
  });
}

}  // namespace bireme
