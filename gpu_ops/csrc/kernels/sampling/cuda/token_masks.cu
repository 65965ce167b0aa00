#include "kernels/device/cuda/common.cuh"
#include "kernels/sampling/cuda/sampling.h"

namespace bireme {
namespace {

constexpr int kThreads = 1024;

// A block a row, because whether an allowed token is left is asked of all of it.
__global__ void token_masks_kernel(float* logits, int64_t vocab, const int32_t* masks, int64_t slots,
                                   const int32_t* sample_slots) {
  const int64_t slot = sample_slots[blockIdx.x];
  if (slot < 0 || slot >= slots) return;
  const int32_t* mask = masks + slot * mask_words(vocab);
  if (mask[0] == 0) return;
  float* row = logits + blockIdx.x * vocab;
  const auto allowed = [&](int64_t token) { return static_cast<uint32_t>(mask[1 + token / 32]) >> token % 32 & 1; };

  int left = 0;
  for (int64_t i = threadIdx.x; i < vocab; i += blockDim.x) {
    if (!allowed(i)) {
      row[i] = -INFINITY;
    } else if (row[i] > -INFINITY) {
      left = 1;
    }
  }
  if (__syncthreads_or(left)) return;
  for (int64_t i = threadIdx.x; i < vocab; i += blockDim.x) {
    if (allowed(i)) row[i] = 0.0f;
  }
}

}  // namespace

void apply_token_masks_cuda(float* logits, int64_t vocab, const int32_t* masks, int64_t slots, const int32_t* sample_slots,
                            int64_t rows, Stream stream) {
  if (rows == 0) return;
  token_masks_kernel<<<static_cast<unsigned>(rows), kThreads, 0, stream>>>(logits, vocab, masks, slots, sample_slots);
  check_launch("apply_token_masks");
}

}  // namespace bireme
