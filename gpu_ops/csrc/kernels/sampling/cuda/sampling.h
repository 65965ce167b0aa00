// Sampling on the GPU. One block a row; a row's result depends on that row and its slot alone, and sums over the vocabulary
// are integers or run in a fixed order, so that it is the same in every run. Slots out of range count as -1.
#pragma once
#include "kernels/sampling/penalties.h"
#include "kernels/sampling/sample.h"
#include "kernels/sampling/token_masks.h"
#include "kernels/device/cuda/device.h"

namespace bireme {

void apply_penalties_cuda(const ApplyPenaltiesState& state, float* logits, int64_t vocab, const int32_t* sample_slots,
                          int64_t rows, Stream stream);

void apply_temperature_cuda(const ApplyTemperatureState& state, float* logits, int64_t vocab, const int32_t* sample_slots,
                            int64_t rows, Stream stream);

void apply_token_masks_cuda(float* logits, int64_t vocab, const int32_t* masks, int64_t slots, const int32_t* sample_slots,
                            int64_t rows, Stream stream);

void sample_cuda(const SampleState& state, const float* logits, int64_t rows, int64_t vocab,
                 const int32_t* sample_slots, int64_t* tokens, Stream stream);

// logits [rows, vocab], tokens [rows]; ids and logprobs [rows, num + 1], ranks [rows]. NaN counts as -inf.
void token_logprobs_cuda(const float* logits, int64_t rows, int64_t vocab, const int64_t* tokens, int64_t num, int64_t* ids,
                         float* logprobs, int64_t* ranks, Stream stream);

}  // namespace bireme
