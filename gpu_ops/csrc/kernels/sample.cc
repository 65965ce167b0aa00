// No sort of the vocabulary: a coarse cutoff leaves the few candidates that matter, and the exact thresholds of top_k and
// top_p are found among them by bisecting the bit patterns of floats, whose order is that of the values.
#include "sample.h"

#include <algorithm>
#include <vector>

#include "philox.h"
#include "row_math.h"

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
class Candidates {
 public:
  // False when the row has no distribution: a NaN, or a best value that is not finite.
  bool load(const float* logits, int64_t vocab, float temperature) {
    const float best = row_max(logits, vocab) / temperature;
    if (!(std::fabs(best) < std::numeric_limits<float>::infinity())) return false;
    n_ = vocab;
    all_ = true;
    distance_.resize(vocab);
    weight_.resize(vocab);
    int32_t nans = 0;
    for (int64_t i = 0; i < vocab; ++i) {
      const float distance = best - logits[i] / temperature;
      nans += distance != distance;
      distance_[i] = distance;
      weight_[i] = exp_nonpositive(-distance);
    }
    return nans == 0;
  }

  void drop_below_weight(float least) {
    if (!(least > 0)) return;
    keep([&](int64_t i) { return weight_[i] >= least; });
  }

  // Keeps every token at least as likely as the k-th.
  void keep_top_k(int64_t k) {
    if (k < 1 || k >= n_) return;
    const auto enough = [&](float cutoff) { return count_within(cutoff) >= k; };
    const Bracket bracket = narrow(enough);
    const float threshold = smallest(bracket, enough);
    keep([&](int64_t i) { return distance_[i] <= threshold; });
  }

  // Keeps the smallest set of the most likely tokens, lower index first among equals, whose weight reaches its share.
  void keep_top_p(float top_p) {
    if (!(top_p < 1)) return;
    const double target = static_cast<double>(top_p) * row_sum(weight_.data(), n_);
    const auto enough = [&](float cutoff) { return weight_within(cutoff) >= target; };
    const Bracket bracket = narrow(enough);
    const float threshold = smallest(bracket, enough);
    double sum = threshold > 0 ? weight_within(from_bits(to_bits(threshold) - 1)) : 0;
    bool reached = false;
    keep([&](int64_t i) {
      if (distance_[i] != threshold) return distance_[i] < threshold;
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
      chunk_sums_.push_back(row_sum(weight_.data() + start, std::min(kChunk, n_ - start)));
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
    double lanes[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= n_; i += kLanes) {
      for (int k = 0; k < kLanes; ++k) lanes[k] += distance_[i + k] <= cutoff ? weight_[i + k] : 0.0f;
    }
    for (; i < n_; ++i) lanes[i % kLanes] += distance_[i] <= cutoff ? weight_[i] : 0.0f;
    double sum = 0;
    for (double lane : lanes) sum += lane;
    return sum;
  }

  // Coarse search over the whole row, then only the tokens within the cutoff stay.
  template <typename Enough>
  Bracket narrow(const Enough& enough) {
    Bracket bracket{0, to_bits(std::numeric_limits<float>::infinity())};
    for (float cutoff : {1.0f, 2.0f, 4.0f, 8.0f, 16.0f, 32.0f}) {
      if (enough(cutoff)) {
        bracket.enough = to_bits(cutoff);
        break;
      }
      bracket.below = to_bits(cutoff);
    }
    const float cutoff = from_bits(bracket.enough);
    keep([&](int64_t i) { return distance_[i] <= cutoff; });
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

  template <typename Keep>
  void keep(Keep&& kept) {
    if (all_) index_.resize(n_);
    int64_t n = 0;
    for (int64_t i = 0; i < n_; ++i) {
      const bool stays = kept(i);
      distance_[n] = distance_[i];
      weight_[n] = weight_[i];
      index_[n] = static_cast<int32_t>(token(i));
      n += stays;
    }
    n_ = n;
    all_ = false;
  }

  int64_t n_ = 0;
  bool all_ = true;  // nothing was dropped yet: position is token
  std::vector<float> distance_, weight_;
  std::vector<int32_t> index_;
  std::vector<double> chunk_sums_;
};

int64_t sample_row(const SampleState& state, int64_t slot, const float* logits, int64_t vocab) {
  static thread_local Candidates candidates;
  if (slot < 0 || !(state.temperature[slot] > kGreedyTemperature)) return row_argmax(logits, vocab);
  if (!candidates.load(logits, vocab, state.temperature[slot])) return row_argmax(logits, vocab);
  candidates.drop_below_weight(state.min_p[slot]);
  candidates.keep_top_k(state.top_k[slot]);
  candidates.keep_top_p(state.top_p[slot]);
  return candidates.draw(philox_uniform(state.seeds[slot], state.prompt_lens[slot] + state.step_idx[slot]));
}

}  // namespace

void sample_cpu(const SampleState& state, const float* logits, int64_t rows, int64_t vocab, const int32_t* sample_slots,
                int64_t* tokens) {
  for (int64_t row = 0; row < rows; ++row) tokens[row] = sample_row(state, sample_slots[row], logits + row * vocab, vocab);
}

}  // namespace bireme
