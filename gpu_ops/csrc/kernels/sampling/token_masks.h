// Which tokens a row may take, a bit each, told by the host for each step.
#pragma once
#include <cstdint>

#include "kernels/device/host_device.h"

namespace bireme {

// A slot's words: the first says whether its row is masked at all (0: it stays as it is), bit i % 32 of word 1 + i / 32 whether it
// may take token i.
BIREME_HOST_DEVICE inline int64_t mask_words(int64_t vocab) { return 1 + (vocab + 31) / 32; }

// What the CPU makes of one row.
bool is_masked(const int32_t* mask);
void apply_token_mask(float* logits, int64_t vocab, const int32_t* mask);
// The largest logit's token of what that would leave, lowest index first among equals; reads only what the mask allows.
int64_t masked_argmax(const float* logits, int64_t vocab, const int32_t* mask);

// logits [rows, vocab], masks [slots, mask_words(vocab)]. Tokens that a row may not take get -inf. Where none of the others is left
// (all are -inf or NaN, because something else forbids them), the others get 0: what the mask says goes before all else.
void apply_token_masks_cpu(float* logits, int64_t vocab, const int32_t* masks, const int32_t* sample_slots, int64_t rows);

}  // namespace bireme
