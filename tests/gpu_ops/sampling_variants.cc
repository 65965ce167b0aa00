// Plain C entry points to the sampling kernels, for builds with other instruction sets.
#include "kernels/sampling/sample.h"
#include "kernels/sampling/token_logprobs.h"

extern "C" void sample(const float* logits, int64_t rows, int64_t vocab, const float* temperature, const float* top_p,
                       const float* min_p, const int32_t* top_k, const int64_t* seeds, const int64_t* zeros,
                       const int32_t* slots, int64_t* tokens) {
  bireme::sample_cpu({zeros, zeros, temperature, top_p, min_p, top_k, seeds}, logits, rows, vocab, slots, tokens);
}

extern "C" void token_logprobs(const float* logits, int64_t rows, int64_t vocab, const int64_t* tokens, int64_t num,
                               int64_t* ids, float* logprobs, int64_t* ranks) {
  bireme::token_logprobs_cpu(logits, rows, vocab, tokens, num, ids, logprobs, ranks);
}
