#include "kernels/sampling/penalties.h"
#include "kernels/sampling/sample.h"

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

namespace bireme {
namespace {

// How often each token occurs, for a history much shorter than the vocabulary: only touched entries are reset.
class TokenCounts {
 public:
  struct Count {
    int32_t generated = 0;
    bool seen = false;
  };

  void resize(int64_t vocab) {
    if (static_cast<int64_t>(counts_.size()) < vocab) counts_.resize(vocab);
  }
  void add(int64_t token, bool generated) {
    Count& count = counts_[token];
    if (!count.seen) seen_.push_back(token);
    count.seen = true;
    count.generated += generated;
  }
  template <typename Visit>
  void drain(Visit visit) {
    for (int64_t token : seen_) {
      visit(token, counts_[token].generated);
      counts_[token] = {};
    }
    seen_.clear();
  }

 private:
  std::vector<Count> counts_;
  std::vector<int64_t> seen_;
};

void mask(const int64_t* ids, int64_t count, float* logits, int64_t vocab) {
  for (int64_t i = 0; i < count; ++i) {
    if (ids[i] >= 0 && ids[i] < vocab) logits[ids[i]] = -std::numeric_limits<float>::infinity();
  }
}

void keep_allowed(const ApplyPenaltiesState& state, int64_t slot, float* logits, int64_t vocab) {
  const int64_t* ids = state.allowed_token_ids + slot * state.allowed_ids;
  if (ids[0] < 0) return;
  static thread_local std::vector<std::pair<int64_t, float>> kept;
  kept.clear();
  for (int64_t i = 0; i < state.allowed_ids; ++i) {
    if (ids[i] >= 0 && ids[i] < vocab) kept.emplace_back(ids[i], logits[ids[i]]);
  }
  std::fill(logits, logits + vocab, -std::numeric_limits<float>::infinity());
  for (const auto& [token, value] : kept) logits[token] = value;
}

// Masks the last token of each sequence whose others end what was generated.
void mask_bad_seqs(const ApplyPenaltiesState& state, int64_t slot, float* logits, int64_t vocab) {
  const int64_t generated = state.step_idx[slot];
  const int64_t* end = state.token_ids_all + slot * state.max_model_len + state.prompt_lens[slot] + generated;
  for (int64_t i = slot * state.num_bad_seqs; i < (slot + 1) * state.num_bad_seqs; ++i) {
    const int64_t before = state.bad_seqs_len[i] - 1;
    if (before < 0 || before > generated) continue;
    const int64_t* sequence = state.bad_seqs + i * state.bad_seq_len;
    if (std::equal(sequence, sequence + before, end - before)) mask(sequence + before, 1, logits, vocab);
  }
}

void penalise_history(const ApplyPenaltiesState& state, int64_t slot, float* logits, int64_t vocab) {
  const float repetition = state.penalty_score[slot], presence = state.presence_score[slot];
  const float frequency = state.frequency_score[slot];
  if (repetition == 1.0f && presence == 0.0f && frequency == 0.0f) return;

  static thread_local TokenCounts counts;
  counts.resize(vocab);
  const int64_t* history = state.token_ids_all + slot * state.max_model_len;
  const int64_t prompt = state.prompt_lens[slot], total = prompt + state.step_idx[slot];
  for (int64_t i = 0; i < total && i < state.max_model_len; ++i) {
    if (history[i] >= 0 && history[i] < vocab) counts.add(history[i], i >= prompt);
  }
  counts.drain([&](int64_t token, int32_t generated) {
    float value = logits[token];
    value = value > 0 ? value / repetition : value * repetition;
    if (generated) {
      value -= frequency * static_cast<float>(generated);
      value -= presence;
    }
    logits[token] = value;
  });
}

}  // namespace

void apply_penalties_cpu(const ApplyPenaltiesState& state, float* logits, int64_t vocab, const int32_t* sample_slots,
                         int64_t rows) {
  for (int64_t row = 0; row < rows; ++row, logits += vocab) {
    const int64_t slot = sample_slots[row];
    if (slot < 0) continue;
    for (int64_t i = slot * state.biases; i < (slot + 1) * state.biases; ++i) {
      const int64_t token = state.logit_bias_ids[i];
      if (token >= 0 && token < vocab) logits[token] += state.logit_bias_values[i];
    }
    if (state.step_idx[slot] < state.min_dec_len[slot]) {
      mask(state.eos_token_id + slot * state.eos_ids, state.eos_ids, logits, vocab);
      mask(state.stop_token_ids + slot * state.stop_ids, state.stop_ids, logits, vocab);
    }
    keep_allowed(state, slot, logits, vocab);
    mask_bad_seqs(state, slot, logits, vocab);
    penalise_history(state, slot, logits, vocab);
  }
}

void apply_temperature_cpu(const ApplyTemperatureState& state, float* logits, int64_t vocab, const int32_t* sample_slots,
                           int64_t rows) {
  for (int64_t row = 0; row < rows; ++row, logits += vocab) {
    const int64_t slot = sample_slots[row];
    if (slot < 0 || !(state.temperature[slot] > kGreedyTemperature)) continue;
    for (int64_t i = 0; i < vocab; ++i) logits[i] /= state.temperature[slot];
  }
}

}  // namespace bireme
