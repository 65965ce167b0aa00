// One token a row: the largest logit, or a draw from the filtered distribution.
#pragma once
#include <cstdint>

namespace bireme {

constexpr float kGreedyTemperature = 1e-5f;

struct SampleState {
  const int64_t *prompt_lens, *step_idx;
  const float *temperature, *top_p, *min_p;
  const int32_t* top_k;
  const int64_t* seeds;
};

void sample_cpu(const SampleState& state, const float* logits, int64_t rows, int64_t vocab, const int32_t* sample_slots,
                int64_t* tokens);

}  // namespace bireme
