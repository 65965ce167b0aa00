// The state ops on the GPU: the structs of the CPU kernels, filled with device pointers. Nothing is validated and nothing can
// raise: slots and ids out of range are ignored. Staging arrays and not_need_stop may lie in pinned host memory.
#pragma once
#include "kernels/state/apply_step.h"
#include "kernels/state/detect_stop.h"
#include "kernels/state/insert_requests.h"
#include "kernels/state/pack_outputs.h"
#include "kernels/state/pack_tokens.h"
#include "kernels/state/update_inputs.h"
#include "kernels/device/cuda/device.h"

namespace bireme {

void insert_requests_cuda(const InsertRequestsState& state, int64_t n, const int64_t* ints, const float* floats,
                          const int64_t* tokens, int64_t width, Stream stream);

void apply_step_cuda(const ApplyStepState& state, int64_t block_size, const int32_t* scheduled, const int32_t* cleared,
                     const int32_t* block_updates, int64_t n, Stream stream);

void recover_block_cuda(const RecoverBlockState& state, int64_t block_size, Stream stream);

// Tokens beyond `rows` are dropped.
void pack_tokens_cuda(const PackTokensState& state, const PackedTokens& out, int64_t rows, Stream stream);

// No slot may occur twice in sample_slots, here and below.
void detect_stop_cuda(const DetectStopState& state, const int64_t* tokens, const int32_t* sample_slots, int64_t rows,
                      Stream stream);

void update_inputs_cuda(const UpdateInputsState& state, int64_t block_size, const int64_t* tokens, const int32_t* sample_slots,
                        int64_t rows, Stream stream);

void pack_outputs_cuda(const PackOutputsState& state, int64_t* landing, Stream stream);

void pack_logprobs_cuda(const PackLogprobsState& state, int64_t* landing, int64_t landing_columns, const int32_t* sample_slots,
                        const int64_t* ids, const float* logprobs, const int64_t* ranks, int64_t rows, int64_t columns,
                        Stream stream);

}  // namespace bireme
