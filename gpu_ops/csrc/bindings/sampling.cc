// Sampling ops: gather_last_tokens, apply_penalties, apply_token_masks, apply_temperature, sample, token_logprobs.
#include "kernels/layers/cuda/layers.h"
#include "kernels/sampling/cuda/sampling.h"
#include "kernels/layers/gather_rows.h"
#include "kernels/sampling/penalties.h"
#include "kernels/sampling/sample.h"
#include "kernels/sampling/token_logprobs.h"
#include "kernels/sampling/token_masks.h"
#include "bindings/slot_tensors.h"

using paddle::DataType;
using paddle::Tensor;

namespace {

void check_logits(const Tensor& logits) {
  check_place(logits, "logits");
  check_shape(logits, "logits", DataType::FLOAT32, {kAnySize, kAnySize});
  PD_CHECK(logits.shape()[1] > 0 && logits.shape()[1] <= INT32_MAX, "logits: has a vocabulary of ", logits.shape()[1],
           ", needs 1 to ", INT32_MAX);
}

}  // namespace

void GatherLastTokens(const Tensor& hidden, const Tensor& sample_rows, const Tensor& out) {
  const DataType dtype = float_type(hidden, "hidden");
  check_shape(hidden, "hidden", dtype, {kAnySize, kAnySize});
  check_shape(sample_rows, "sample_rows", DataType::INT32, {kAnySize});
  const int64_t rows = sample_rows.numel(), width = hidden.shape()[1];
  check_shape(out, "out", dtype, {kAnySize, width});
  PD_CHECK(out.shape()[0] >= rows, "out: has ", out.shape()[0], " rows, needs at least the ", rows, " of sample_rows");
  check_same_place(hidden, "hidden", out, "out");
  if constexpr (kWithCuda) {
    if (hidden.is_gpu()) {
      check_gpu_columns(width, "hidden");
      check_same_place(hidden, "hidden", sample_rows, "sample_rows");
      return on_device([&] {
        bireme::gather_rows_cuda(hidden.data(), hidden.shape()[0], width, sample_rows.data<int32_t>(), rows, raw_data(out),
                                 stream_of(hidden));
      });
    }
  }
  bireme::gather_rows_cpu(data_or_null<float>(hidden), hidden.shape()[0], width, data_or_null<int32_t>(sample_rows), rows,
                          mutable_data<float>(out));
}

void ApplyPenalties(const Slots<bireme::ApplyPenaltiesState>& slots, const Tensor& logits, const Tensor& sample_slots) {
  check_logits(logits);
  check_slots(sample_slots, logits.shape()[0], slots.state.slots, logits.is_gpu());
  check_same_place(logits, "logits", slots.first, "state");
  if constexpr (kWithCuda) {
    if (logits.is_gpu()) {
      return on_device([&] {
        bireme::apply_penalties_cuda(slots.state, mutable_data<float>(logits), logits.shape()[1], sample_slots.data<int32_t>(),
                                     logits.shape()[0], slots.stream());
      });
    }
  }
  bireme::apply_penalties_cpu(slots.state, data_or_null<float>(logits), logits.shape()[1], data_or_null<int32_t>(sample_slots),
                              logits.shape()[0]);
}

void check_masks(const Tensor& masks, const Tensor& logits, const Tensor& sample_slots) {
  check_shape(masks, "masks", DataType::INT32, {kAnySize, bireme::mask_words(logits.shape()[1])});
  check_slots(sample_slots, logits.shape()[0], masks.shape()[0], logits.is_gpu());
  check_same_place(logits, "logits", masks, "masks");
}

void ApplyTokenMasks(const Tensor& logits, const Tensor& masks, const Tensor& sample_slots) {
  check_logits(logits);
  check_masks(masks, logits, sample_slots);
  const int64_t rows = logits.shape()[0], vocab = logits.shape()[1];
  if constexpr (kWithCuda) {
    if (logits.is_gpu()) {
      return on_device([&] {
        bireme::apply_token_masks_cuda(mutable_data<float>(logits), vocab, masks.data<int32_t>(), masks.shape()[0],
                                       sample_slots.data<int32_t>(), rows, stream_of(logits));
      });
    }
  }
  bireme::apply_token_masks_cpu(data_or_null<float>(logits), vocab, data_or_null<int32_t>(masks),
                                data_or_null<int32_t>(sample_slots), rows);
}

void ApplyTemperature(const Slots<bireme::ApplyTemperatureState>& slots, const Tensor& logits, const Tensor& sample_slots) {
  check_logits(logits);
  check_slots(sample_slots, logits.shape()[0], slots.state.slots, logits.is_gpu());
  check_same_place(logits, "logits", slots.first, "state");
  if constexpr (kWithCuda) {
    if (logits.is_gpu()) {
      return on_device([&] {
        bireme::apply_temperature_cuda(slots.state, mutable_data<float>(logits), logits.shape()[1],
                                       sample_slots.data<int32_t>(), logits.shape()[0], slots.stream());
      });
    }
  }
  bireme::apply_temperature_cpu(slots.state, data_or_null<float>(logits), logits.shape()[1],
                                data_or_null<int32_t>(sample_slots), logits.shape()[0]);
}

std::vector<Tensor> Sample(const Slots<bireme::SampleState>& slots, const Tensor& logits, const Tensor& sample_slots,
                           const paddle::optional<Tensor>& masks) {
  check_logits(logits);
  const int64_t rows = logits.shape()[0];
  check_slots(sample_slots, rows, slots.state.slots, logits.is_gpu());
  check_same_place(logits, "logits", slots.first, "state");
  if (masks) check_masks(*masks, logits, sample_slots);
  Tensor tokens = paddle::empty({rows}, DataType::INT64, logits.place());
  if constexpr (kWithCuda) {
    if (logits.is_gpu()) {
      if (masks) ApplyTokenMasks(logits, *masks, sample_slots);
      on_device([&] {
        bireme::sample_cuda(slots.state, logits.data<float>(), rows, logits.shape()[1], sample_slots.data<int32_t>(),
                            tokens.data<int64_t>(), slots.stream());
      });
      return {tokens};
    }
  }
  bireme::sample_cpu(slots.state, data_or_null<float>(logits), rows, logits.shape()[1], data_or_null<int32_t>(sample_slots),
                     masks ? data_or_null<int32_t>(*masks) : nullptr, data_or_null<int64_t>(tokens));
  return {tokens};
}

std::vector<Tensor> TokenLogprobs(const Tensor& logits, const Tensor& tokens, int64_t num) {
  check_logits(logits);
  const int64_t rows = logits.shape()[0];
  check_shape(tokens, "tokens", DataType::INT64, {rows});
  PD_CHECK(num >= 0, "num: is ", num, ", needs at least 0");
  Tensor ids = paddle::empty({rows, num + 1}, DataType::INT64, logits.place());
  Tensor logprobs = paddle::empty({rows, num + 1}, DataType::FLOAT32, logits.place());
  Tensor ranks = paddle::empty({rows}, DataType::INT64, logits.place());
  check_same_place(logits, "logits", tokens, "tokens");
  if constexpr (kWithCuda) {
    if (logits.is_gpu()) {
      on_device([&] {
        bireme::token_logprobs_cuda(logits.data<float>(), rows, logits.shape()[1], tokens.data<int64_t>(), num,
                                    ids.data<int64_t>(), logprobs.data<float>(), ranks.data<int64_t>(), stream_of(logits));
      });
      return {ids, logprobs, ranks};
    }
  }
  bireme::token_logprobs_cpu(data_or_null<float>(logits), rows, logits.shape()[1], data_or_null<int64_t>(tokens), num,
                             data_or_null<int64_t>(ids), data_or_null<float>(logprobs), data_or_null<int64_t>(ranks));
  return {ids, logprobs, ranks};
}

PD_BUILD_OP(bireme_gather_last_tokens)
    .Inputs({"hidden", "sample_rows", "out"})
    .Outputs({"out_out"})
    .SetInplaceMap({{"out", "out_out"}})
    .SetKernelFn(PD_KERNEL(GatherLastTokens));
PD_BUILD_OP(bireme_apply_penalties)
    .Inputs(state_inputs<bireme::ApplyPenaltiesState>({"logits", "sample_slots"}))
    .Outputs({"logits_out"})
    .SetInplaceMap({{"logits", "logits_out"}})
    .SetKernelFn(PD_KERNEL(StateOp<bireme::ApplyPenaltiesState, ApplyPenalties>::run));
PD_BUILD_OP(bireme_apply_token_masks)
    .Inputs({"logits", "masks", "sample_slots"})
    .Outputs({"logits_out"})
    .SetInplaceMap({{"logits", "logits_out"}})
    .SetKernelFn(PD_KERNEL(ApplyTokenMasks));
PD_BUILD_OP(bireme_apply_temperature)
    .Inputs(state_inputs<bireme::ApplyTemperatureState>({"logits", "sample_slots"}))
    .Outputs({"logits_out"})
    .SetInplaceMap({{"logits", "logits_out"}})
    .SetKernelFn(PD_KERNEL(StateOp<bireme::ApplyTemperatureState, ApplyTemperature>::run));
PD_BUILD_OP(bireme_sample)
    .Inputs(state_inputs<bireme::SampleState>({"logits", "sample_slots", paddle::Optional("masks")}))
    .Outputs({"tokens"})
    .SetKernelFn(PD_KERNEL(StateOp<bireme::SampleState, Sample>::run));
PD_BUILD_OP(bireme_token_logprobs)
    .Inputs({"logits", "tokens"})
    .Attrs({"num: int64_t"})
    .Outputs({"ids", "logprobs", "ranks"})
    .SetKernelFn(PD_KERNEL(TokenLogprobs));
