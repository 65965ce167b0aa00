// No sort of the vocabulary: a coarse cutoff leaves the few candidates that matter, and the exact thresholds of top_k and
// top_p are found among them by bisecting the bit patterns of floats, whose order is that of the values.
#include "kernels/sampling/sample.h"

#include <algorithm>
#include <vector>

#include "kernels/sampling/philox.h"
#include "kernels/sampling/row_math.h"
#include "kernels/sampling/token_masks.h"
#include "kernels/device/thread_pool.h"

namespace bireme {
namespace {

float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Tokens in index order: how far each scaled logit lies below the best one, and its weight exp(-distance).
// Padding up to whole vectors has infinite distance and no weight.
class Candidates {
 public:
  // False when the row has no distribution: a NaN, or a best value that is not finite.
  bool load(const float* logits, int64_t vocab, float temperature) {
    const float best = row_max(logits, vocab) / temperature;
    if (!(std::fabs(best) < kInfinity)) return false;
    n_ = vocab;
    all_ = true;
    distance_.resize(padded(vocab));
    weight_.resize(padded(vocab));
    const Vec16 divisor = broadcast(temperature), top = broadcast(best), lowest = broadcast(-kInfinity);
    for (int64_t i = 0; i < vocab; i += kLanes) {
      const Vec16 distance = top - load_row(logits, i, vocab, lowest) / divisor;
      store(&distance_[i], distance);
      store(&weight_[i], exp(zero() - distance));
    }
    int32_t nans = 0;
    for (int64_t i = 0; i < vocab; ++i) nans += logits[i] != logits[i];
    return nans == 0;
  }

  void drop_below_weight(float least) {
    if (!(least > 0)) return;
    // The cutoff only spares work; the weight decides.
    const float cutoff = static_cast<float>(-log_positive(least)) + 0.01f;
    keep_within(cutoff, [&](int64_t i) { return weight_[i] >= least; });
  }

  // Keeps every token at least as likely as the k-th.
  void keep_top_k(int64_t k) {
    if (k < 1 || k >= n_) return;
    const auto enough = [&](float cutoff) { return count_within(cutoff) >= k; };
    const Bracket bracket = narrow(enough);
    const float threshold = smallest(bracket, enough);
    keep_within(threshold);
  }

  // Keeps the smallest set of the most likely tokens, lower index first among equals, whose weight reaches its share.
  void keep_top_p(float top_p) {
    if (!(top_p < 1)) return;
    const double target = static_cast<double>(top_p) * weight_between(0, n_);
    const auto enough = [&](float cutoff) { return weight_within(cutoff) >= target; };
    const Bracket bracket = narrow(enough);
    const float threshold = smallest(bracket, enough);
    double sum = threshold > 0 ? weight_within(from_bits(to_bits(threshold) - 1)) : 0;
    bool reached = false;
    keep_within(threshold, [&](int64_t i) {
      if (distance_[i] < threshold) return true;
      if (reached) return false;
      sum += weight_[i];
      reached = sum >= target;
      return true;
    });
  }

  // The token at which the cumulative weight, in index order, passes the fraction u of the whole.
  int64_t draw(float u) {
    chunk_sums_.clear();
    double total = 0;
    for (int64_t start = 0; start < n_; start += kChunk) {
      chunk_sums_.push_back(weight_between(start, std::min(start + kChunk, n_)));
      total += chunk_sums_.back();
    }
    const double target = u * total;
    double sum = 0;
    for (size_t chunk = 0; chunk < chunk_sums_.size(); ++chunk) {
      if (sum + chunk_sums_[chunk] > target) {
        const int64_t start = static_cast<int64_t>(chunk) * kChunk, end = std::min(start + kChunk, n_);
        double within = sum;
        for (int64_t i = start; i < end; ++i) {
          within += weight_[i];
          if (within > target) return token(i);
        }
      }
      sum += chunk_sums_[chunk];
    }
    // Rounding let the last chunk's parts fall short of its sum.
    int64_t last = n_ - 1;
    while (last > 0 && weight_[last] == 0) --last;
    return token(last);
  }

 private:
  static constexpr int64_t kChunk = 512;

  // A cutoff that leaves too little, as a bit pattern, and one that leaves enough.
  struct Bracket {
    uint32_t below, enough;
  };

  int64_t token(int64_t i) const { return all_ ? i : index_[i]; }

  int64_t count_within(float cutoff) const {
    int32_t count = 0;
    for (int64_t i = 0; i < n_; ++i) count += distance_[i] <= cutoff;
    return count;
  }

  double weight_within(float cutoff) const {
    LaneSums sums;
    for (int64_t i = 0; i < n_; i += kLanes) sums.add_where(&weight_[i], &distance_[i], cutoff);
    return sums.total();
  }

  // Weight of [start, end); start is a multiple of the vector length.
  double weight_between(int64_t start, int64_t end) const {
    LaneSums sums;
    for (int64_t i = start; i < end; i += kLanes) sums.add(&weight_[i]);
    return sums.total();
  }

  // Coarse search over the whole row, then only the tokens within the cutoff stay.
  template <typename Enough>
  Bracket narrow(const Enough& enough) {
    Bracket bracket{0, to_bits(kInfinity)};
    for (float cutoff : {1.0f, 2.0f, 4.0f, 8.0f, 16.0f, 32.0f}) {
      if (enough(cutoff)) {
        bracket.enough = to_bits(cutoff);
        break;
      }
      bracket.below = to_bits(cutoff);
    }
    const float cutoff = from_bits(bracket.enough);
    keep_within(cutoff);
    return bracket;
  }

  // The smallest distance that is enough.
  template <typename Enough>
  float smallest(Bracket bracket, const Enough& enough) const {
    while (bracket.below < bracket.enough) {
      const uint32_t middle = bracket.below + (bracket.enough - bracket.below) / 2;
      if (enough(from_bits(middle))) {
        bracket.enough = middle;
      } else {
        bracket.below = middle + 1;
      }
    }
    return from_bits(bracket.enough);
  }

  // Moves the tokens that stay to the front; blocks of which none can stay, nearly all of a vocabulary, are passed over.
  template <typename Keep>
  void keep_within(float cutoff, Keep&& kept) {
    if (all_) index_.resize(distance_.size());
    constexpr int64_t kBlock = 64;
    int64_t n = 0;
    for (int64_t start = 0; start < n_; start += kBlock) {
      const int64_t end = std::min(start + kBlock, n_);
      int near = 0;
      for (int64_t i = start; i < end; ++i) near |= distance_[i] <= cutoff;
      if (!near) continue;
      for (int64_t i = start; i < end; ++i) {
        const bool stays = distance_[i] <= cutoff && kept(i);
        distance_[n] = distance_[i];
        weight_[n] = weight_[i];
        index_[n] = static_cast<int32_t>(token(i));
        n += stays;
      }
    }
    n_ = n;
    all_ = false;
    std::fill(distance_.begin() + n, distance_.begin() + padded(n), kInfinity);
    std::fill(weight_.begin() + n, weight_.begin() + padded(n), 0.0f);
  }

  void keep_within(float cutoff) {
    keep_within(cutoff, [](int64_t) { return true; });
  }

  int64_t n_ = 0;
  bool all_ = true;  // nothing was dropped yet: position is token
  std::vector<float> distance_, weight_;
  std::vector<int32_t> index_;
  std::vector<double> chunk_sums_;
};

bool is_greedy(const SampleState& state, int64_t slot) { return slot < 0 || !(state.temperature[slot] > kGreedyTemperature); }

// mask: of the row, or null.
int64_t sample_row(const SampleState& state, int64_t slot, float* logits, int64_t vocab, const int32_t* mask) {
  static thread_local Candidates candidates;
  if (mask != nullptr) {
    if (is_greedy(state, slot)) return masked_argmax(logits, vocab, mask);
    apply_token_mask(logits, vocab, mask);
  }
  if (is_greedy(state, slot) || !candidates.load(logits, vocab, state.temperature[slot])) return row_argmax(logits, vocab);
  candidates.drop_below_weight(state.min_p[slot]);
  candidates.keep_top_k(state.top_k[slot]);
  candidates.keep_top_p(state.top_p[slot]);
  return candidates.draw(philox_uniform(state.seeds[slot], state.prompt_lens[slot] + state.step_idx[slot]));
}

}  // namespace

void sample_cpu(const SampleState& state, float* logits, int64_t rows, int64_t vocab, const int32_t* sample_slots,
                const int32_t* masks, int64_t* tokens) {
  const auto mask_of = [&](int64_t slot) -> const int32_t* {
    const int32_t* mask = masks == nullptr || slot < 0 ? nullptr : masks + slot * mask_words(vocab);
    return mask != nullptr && is_masked(mask) ? mask : nullptr;
  };
  // A greedy row takes microseconds, less than waking a thread for it; one under a mask up to twice as long.
  const bool greedy = std::all_of(sample_slots, sample_slots + rows, [&](int32_t slot) { return is_greedy(state, slot); });
  parallel_for(rows, greedy ? (masks == nullptr ? 16 : 4) : 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      tokens[row] = sample_row(state, sample_slots[row], logits + row * vocab, vocab, mask_of(sample_slots[row]));
    }
  });
}

}  // namespace bireme
