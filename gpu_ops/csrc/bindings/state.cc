// State ops that move a step along: apply_step, recover_block, pack_tokens, detect_stop, update_inputs.
#include "kernels/state/apply_step.h"
#include "kernels/state/cuda/state.h"
#include "kernels/state/detect_stop.h"
#include "kernels/state/pack_tokens.h"
#include "kernels/state/update_inputs.h"
#include "bindings/slot_tensors.h"

using paddle::DataType;
using paddle::Tensor;

namespace {

void check_block_size(int64_t block_size) { PD_CHECK(block_size > 0, "block_size: is ", block_size, ", needs at least 1"); }

// The R sampled tokens; sample_slots may be longer. Returns R.
int64_t check_sampled(const Tensor& tokens, const Tensor& sample_slots, int64_t slots, bool on_gpu) {
  check_shape(tokens, "tokens", DataType::INT64, {kAnySize});
  const int64_t rows = tokens.numel();
  check_slots(sample_slots, rows, slots, on_gpu);
  check_staging(tokens, "tokens", on_gpu);
  return rows;
}

void check_block_updates(const Tensor& block_updates, int64_t slots, int64_t blocks) {
  check_shape(block_updates, "block_updates", DataType::INT32, {kAnySize, 3});
  if (!host_readable(block_updates)) return;
  const int32_t* update = data_or_null<int32_t>(block_updates);
  for (int64_t row = 0; row < block_updates.shape()[0]; ++row, update += 3) {
    PD_CHECK(update[0] >= 0 && update[0] < slots, "block_updates: row ", row, " names slot ", update[0], ", needs 0 to ",
             slots - 1);
    PD_CHECK(update[1] >= 0 && update[1] < blocks, "block_updates: row ", row, " names index ", update[1], ", needs 0 to ",
             blocks - 1);
  }
}

}  // namespace

void ApplyStep(const Slots<bireme::ApplyStepState>& slots, const Tensor& scheduled, const Tensor& cleared,
               const Tensor& block_updates, int64_t block_size) {
  const auto& state = slots.state;
  check_block_size(block_size);
  check_shape(scheduled, "scheduled", DataType::INT32, {state.slots});
  check_shape(cleared, "cleared", DataType::INT32, {state.slots});
  check_block_updates(block_updates, state.slots, state.blocks);
  check_staging(scheduled, "scheduled", slots.on_gpu());
  check_staging(cleared, "cleared", slots.on_gpu());
  check_staging(block_updates, "block_updates", slots.on_gpu());
  if constexpr (kWithCuda) {
    if (slots.on_gpu()) {
      return on_device([&] {
        bireme::apply_step_cuda(state, block_size, scheduled.data<int32_t>(), cleared.data<int32_t>(),
                                data_or_null<int32_t>(block_updates), block_updates.shape()[0], slots.stream());
      });
    }
  }
  bireme::apply_step_cpu(state, block_size, scheduled.data<int32_t>(), cleared.data<int32_t>(),
                         data_or_null<int32_t>(block_updates), block_updates.shape()[0]);
}

void RecoverBlock(const Slots<bireme::RecoverBlockState>& slots, int64_t block_size) {
  check_block_size(block_size);
  if constexpr (kWithCuda) {
    if (slots.on_gpu()) {
      return on_device([&] { bireme::recover_block_cuda(slots.state, block_size, slots.stream()); });
    }
  }
  bireme::recover_block_cpu(slots.state, block_size);
}

void PackTokens(const Slots<bireme::PackTokensState>& slots, const Tensor& ids_remove_padding, const Tensor& positions,
                const Tensor& batch_id_per_token, const Tensor& cu_seqlens_q, const Tensor& sample_rows,
                const Tensor& sample_slots, const Tensor& counts) {
  const int64_t count = slots.state.slots;
  check_shape(ids_remove_padding, "ids_remove_padding", DataType::INT64, {kAnySize});
  const int64_t rows = ids_remove_padding.numel();
  check_shape(positions, "positions", DataType::INT32, {rows});
  check_shape(batch_id_per_token, "batch_id_per_token", DataType::INT32, {rows});
  check_shape(cu_seqlens_q, "cu_seqlens_q", DataType::INT32, {count + 1});
  check_shape(sample_rows, "sample_rows", DataType::INT32, {count});
  check_shape(sample_slots, "sample_slots", DataType::INT32, {count});
  check_shape(counts, "counts", DataType::INT32, {2});
  const bireme::PackedTokens out{data_or_null<int64_t>(ids_remove_padding), data_or_null<int32_t>(positions),
                                 data_or_null<int32_t>(batch_id_per_token), mutable_data<int32_t>(cu_seqlens_q),
                                 mutable_data<int32_t>(sample_rows), mutable_data<int32_t>(sample_slots),
                                 mutable_data<int32_t>(counts)};
  check_same_place(slots.first, "state", ids_remove_padding, "ids_remove_padding", counts, "counts");
  if constexpr (kWithCuda) {
    if (slots.on_gpu()) {
      return on_device([&] { bireme::pack_tokens_cuda(slots.state, out, rows, slots.stream()); });
    }
  }
  const int64_t tokens = bireme::pack_tokens_cpu(slots.state, out, rows);
  PD_CHECK(tokens <= rows, "ids_remove_padding: has ", rows, " rows, but the step has ", tokens, " tokens");
}

void DetectStop(const Slots<bireme::DetectStopState>& slots, const Tensor& tokens, const Tensor& sample_slots) {
  const int64_t rows = check_sampled(tokens, sample_slots, slots.state.slots, slots.on_gpu());
  if constexpr (kWithCuda) {
    if (slots.on_gpu()) {
      return on_device([&] {
        bireme::detect_stop_cuda(slots.state, data_or_null<int64_t>(tokens), data_or_null<int32_t>(sample_slots), rows,
                                 slots.stream());
      });
    }
  }
  bireme::detect_stop_cpu(slots.state, data_or_null<int64_t>(tokens), data_or_null<int32_t>(sample_slots), rows);
}

void UpdateInputs(const Slots<bireme::UpdateInputsState>& slots, const Tensor& tokens, const Tensor& sample_slots,
                  int64_t block_size) {
  check_block_size(block_size);
  const int64_t rows = check_sampled(tokens, sample_slots, slots.state.slots, slots.on_gpu());
  if constexpr (kWithCuda) {
    if (slots.on_gpu()) {
      return on_device([&] {
        bireme::update_inputs_cuda(slots.state, block_size, data_or_null<int64_t>(tokens), data_or_null<int32_t>(sample_slots),
                                   rows, slots.stream());
      });
    }
  }
  bireme::update_inputs_cpu(slots.state, block_size, data_or_null<int64_t>(tokens), data_or_null<int32_t>(sample_slots), rows);
}

// One tensor that an op writes is named as its output, one that is never empty: every further one would cost a Python
// object a step, and Paddle 2.6 refuses empty ones.
PD_BUILD_OP(bireme_apply_step)
    .Inputs(state_inputs<bireme::ApplyStepState>({"scheduled", "cleared", "block_updates"}))
    .Attrs({"block_size: int64_t"})
    .Outputs({"seq_lens_this_time_out"})
    .SetInplaceMap({{"seq_lens_this_time", "seq_lens_this_time_out"}})
    .SetKernelFn(PD_KERNEL(StateOp<bireme::ApplyStepState, ApplyStep>::run));
PD_BUILD_OP(bireme_recover_block)
    .Inputs(state_inputs<bireme::RecoverBlockState>({}))
    .Attrs({"block_size: int64_t"})
    .Outputs({"is_block_step_out"})
    .SetInplaceMap({{"is_block_step", "is_block_step_out"}})
    .SetKernelFn(PD_KERNEL(StateOp<bireme::RecoverBlockState, RecoverBlock>::run));
PD_BUILD_OP(bireme_pack_tokens)
    .Inputs(state_inputs<bireme::PackTokensState>({"ids_remove_padding", "positions", "batch_id_per_token", "cu_seqlens_q",
                                                   "sample_rows", "sample_slots", "counts"}))
    .Outputs({"counts_out"})
    .SetInplaceMap({{"counts", "counts_out"}})
    .SetKernelFn(PD_KERNEL(StateOp<bireme::PackTokensState, PackTokens>::run));
PD_BUILD_OP(bireme_detect_stop)
    .Inputs(state_inputs<bireme::DetectStopState>({"tokens", "sample_slots"}))
    .Outputs({"stop_flags_out"})
    .SetInplaceMap({{"stop_flags", "stop_flags_out"}})
    .SetKernelFn(PD_KERNEL(StateOp<bireme::DetectStopState, DetectStop>::run));
PD_BUILD_OP(bireme_update_inputs)
    .Inputs(state_inputs<bireme::UpdateInputsState>({"tokens", "sample_slots"}))
    .Attrs({"block_size: int64_t"})
    .Outputs({"step_idx_out"})
    .SetInplaceMap({{"step_idx", "step_idx_out"}})
    .SetKernelFn(PD_KERNEL(StateOp<bireme::UpdateInputsState, UpdateInputs>::run));
