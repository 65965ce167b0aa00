// Plain C entry points to the sampling kernels, for builds with other instruction sets.
#include "kernels/sampling/sample.h"
#include "kernels/sampling/token_logprobs.h"
#include "kernels/sampling/token_masks.h"

extern "C" void sample(float* logits, int64_t rows, int64_t vocab, const float* temperature, const float* top_p,
                       const float* min_p, const int32_t* top_k, const int64_t* seeds, const int64_t* zeros,
                       const int32_t* slots, const int32_t* masks, int64_t* tokens) {
  bireme::SampleState state;
  state.prompt_lens = state.step_idx = zeros;
  state.temperature = temperature, state.top_p = top_p, state.min_p = min_p, state.top_k = top_k, state.seeds = seeds;
  bireme::sample_cpu(state, logits, rows, vocab, slots, masks, tokens);
}

extern "C" void token_logprobs(const float* logits, int64_t rows, int64_t vocab, const int64_t* tokens, int64_t num,
                               int64_t* ids, float* logprobs, int64_t* ranks) {
  bireme::token_logprobs_cpu(logits, rows, vocab, tokens, num, ids, logprobs, ranks);
}

extern "C" void token_masks(float* logits, int64_t rows, int64_t vocab, const int32_t* masks, const int32_t* slots) {
  bireme::apply_token_masks_cpu(logits, vocab, masks, slots, rows);
}
