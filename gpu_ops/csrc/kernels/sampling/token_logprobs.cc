#include "kernels/sampling/token_logprobs.h"

#include <algorithm>
#include <vector>

#include "kernels/sampling/row_math.h"
#include "kernels/device/thread_pool.h"

namespace bireme {
namespace {

inline float or_lowest(float value) { return value == value ? value : -kInfinity; }

// Distance below the best value; equal values have distance 0, also when both are infinite.
inline float below(float value, float best) { return value == best ? 0.0f : value - best; }

// log(sum of exp(value - best)). A best value that is infinite shares everything with its equals.
double log_sum(const float* row, int64_t n, float best) {
  if (!(std::fabs(best) < kInfinity)) {
    int64_t equals = 0;
    for (int64_t i = 0; i < n; ++i) equals += or_lowest(row[i]) == best;
    return log_positive(static_cast<double>(equals));
  }
  const Vec16 lowest = broadcast(-kInfinity);
  LaneSums sums;
  float terms[kLanes];
  for (int64_t i = 0; i < n; i += kLanes) {
    store(terms, exp(max(load_row(row, i, n, lowest), lowest) - broadcast(best)));
    sums.add(terms);
  }
  return log_positive(sums.total());
}

int64_t count_greater(const float* row, int64_t n, float value) {
  int32_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += row[i] > value;
  return count;
}

// The `num` largest values of a row, best first, lower index first among equals. Blocks without a value above the worst
// one kept, which are nearly all, cost one vector comparison a lane.
class TopTokens {
 public:
  void find(const float* row, int64_t n, int64_t num) {
    ids_.clear();
    values_.clear();
    num_ = std::min(num, n);
    constexpr int64_t kBlock = 64;
    for (int64_t start = 0; num_ > 0 && start < n; start += kBlock) {
      const int64_t end = std::min(start + kBlock, n);
      if (full()) {
        int better = 0;
        for (int64_t i = start; i < end; ++i) better |= row[i] > values_.back();
        if (!better) continue;
      }
      for (int64_t i = start; i < end; ++i) {
        const float value = or_lowest(row[i]);
        if (!full() || value > values_.back()) insert(i, value);
      }
    }
  }
  const std::vector<int64_t>& ids() const { return ids_; }
  const std::vector<float>& values() const { return values_; }

 private:
  bool full() const { return static_cast<int64_t>(ids_.size()) == num_; }
  void insert(int64_t id, float value) {
    if (full()) {
      ids_.pop_back();
      values_.pop_back();
    }
    // After every equal value: those have lower indices.
    const auto place = std::upper_bound(values_.begin(), values_.end(), value, [](float a, float b) { return a > b; });
    ids_.insert(ids_.begin() + (place - values_.begin()), id);
    values_.insert(place, value);
  }

  int64_t num_ = 0;
  std::vector<int64_t> ids_;
  std::vector<float> values_;
};

void row_logprobs(const float* logits, int64_t vocab, int64_t token, int64_t num, int64_t* ids, float* logprobs, int64_t* rank) {
  static thread_local TopTokens top;
  const float best = row_max(logits, vocab);
  const double log_total = log_sum(logits, vocab, best);
  const auto logprob = [&](float value) { return static_cast<float>(double{below(value, best)} - log_total); };

  const bool valid = token >= 0 && token < vocab;
  const float chosen = valid ? or_lowest(logits[token]) : -kInfinity;
  ids[0] = token;
  logprobs[0] = valid ? logprob(chosen) : -kInfinity;
  *rank = valid ? 1 + count_greater(logits, vocab, chosen) : 0;

  top.find(logits, vocab, num);
  for (int64_t i = 0; i < num; ++i) {
    const bool present = i < static_cast<int64_t>(top.ids().size());
    ids[1 + i] = present ? top.ids()[i] : -1;
    logprobs[1 + i] = present ? logprob(top.values()[i]) : -kInfinity;
  }
}

}  // namespace

void token_logprobs_cpu(const float* logits, int64_t rows, int64_t vocab, const int64_t* tokens, int64_t num, int64_t* ids,
                        float* logprobs, int64_t* ranks) {
  parallel_for(rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      row_logprobs(logits + row * vocab, vocab, tokens[row], num, ids + row * (num + 1), logprobs + row * (num + 1), ranks + row);
    }
  });
}

}  // namespace bireme
