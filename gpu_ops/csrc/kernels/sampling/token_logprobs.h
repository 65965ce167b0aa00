// Log-softmax at the chosen and at the most likely tokens.
#pragma once
#include <cstdint>

namespace bireme {

// logits [rows, vocab], tokens [rows]; ids and logprobs [rows, num + 1], ranks [rows]. NaN counts as -inf.
void token_logprobs_cpu(const float* logits, int64_t rows, int64_t vocab, const int64_t* tokens, int64_t num, int64_t* ids,
                        float* logprobs, int64_t* ranks);

}  // namespace bireme
