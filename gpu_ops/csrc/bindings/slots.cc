// State ops at the ends of a request's stay on the device: insert_requests, pack_outputs, pack_logprobs.
#include "kernels/state/cuda/state.h"
#include "kernels/state/insert_requests.h"
#include "kernels/state/pack_outputs.h"
#include "bindings/slot_tensors.h"

using paddle::DataType;
using paddle::Tensor;

void InsertRequests(const Slots<bireme::InsertRequestsState>& slots, const Tensor& ints, const Tensor& floats,
                    const Tensor& tokens) {
  const auto& state = slots.state;
  check_shape(ints, "ints", DataType::INT64, {kAnySize, bireme::insert_int_columns(state)});
  const int64_t rows = ints.shape()[0];
  check_shape(floats, "floats", DataType::FLOAT32, {rows, bireme::insert_float_columns(state)});
  check_shape(tokens, "tokens", DataType::INT64, {rows, kAnySize});
  const int64_t width = tokens.shape()[1];
  check_staging(ints, "ints", slots.on_gpu());
  check_staging(floats, "floats", slots.on_gpu());
  check_staging(tokens, "tokens", slots.on_gpu());
  const int64_t* values = data_or_null<int64_t>(ints);
  for (int64_t row = 0; row < rows && host_readable(ints); ++row) {
    const char* fault = bireme::insert_request_fault(state, values + row * ints.shape()[1], width);
    PD_CHECK(fault == nullptr, "ints: row ", row, " has an impossible ", fault, " for ", state.slots, " slots of ",
             state.max_model_len, " tokens and token rows of ", width);
  }
  if constexpr (kWithCuda) {
    if (slots.on_gpu()) {
      return on_device([&] {
        bireme::insert_requests_cuda(state, rows, values, data_or_null<float>(floats), data_or_null<int64_t>(tokens), width,
                                     slots.stream());
      });
    }
  }
  bireme::insert_requests_cpu(state, rows, values, data_or_null<float>(floats), data_or_null<int64_t>(tokens), width);
}

void PackOutputs(const Slots<bireme::PackOutputsState>& slots, const Tensor& landing) {
  check_tensor(landing, "landing", DataType::INT64, 1 + slots.state.slots * bireme::kSlotFields);
  check_same_place(slots.first, "state", landing, "landing");
  if constexpr (kWithCuda) {
    if (slots.on_gpu()) {
      return on_device([&] { bireme::pack_outputs_cuda(slots.state, mutable_data<int64_t>(landing), slots.stream()); });
    }
  }
  bireme::pack_outputs_cpu(slots.state, mutable_data<int64_t>(landing));
}

void PackLogprobs(const Slots<bireme::PackLogprobsState>& slots, const Tensor& landing, const Tensor& sample_slots,
                  const Tensor& ids, const Tensor& logprobs, const Tensor& ranks) {
  const int64_t count = slots.state.slots;
  check_shape(ids, "logprob_ids", DataType::INT64, {kAnySize, kAnySize});
  const int64_t rows = ids.shape()[0], columns = ids.shape()[1];
  check_shape(logprobs, "logprobs", DataType::FLOAT32, {rows, columns});
  check_shape(ranks, "ranks", DataType::INT64, {rows});
  check_slots(sample_slots, rows, count, slots.on_gpu());
  check_tensor(landing, "landing", DataType::INT64, 1 + count * (bireme::kSlotFields + 4));
  const int64_t width = (landing.numel() - 1) / count - bireme::kSlotFields, landing_columns = (width - 2) / 2;
  PD_CHECK(landing.numel() == 1 + count * (bireme::kSlotFields + 2 + 2 * landing_columns), "landing: has ", landing.numel(),
           " elements, needs 1 + ", count, " * (", bireme::kSlotFields, " + 2 + 2 * alternatives)");
  check_same_place(slots.first, "state", landing, "landing", ids, "logprob_ids");
  if constexpr (kWithCuda) {
    if (slots.on_gpu()) {
      return on_device([&] {
        bireme::pack_logprobs_cuda(slots.state, mutable_data<int64_t>(landing), landing_columns,
                                   data_or_null<int32_t>(sample_slots), data_or_null<int64_t>(ids), data_or_null<float>(logprobs),
                                   data_or_null<int64_t>(ranks), rows, columns, slots.stream());
      });
    }
  }
  bireme::pack_logprobs_cpu(slots.state, mutable_data<int64_t>(landing), landing_columns, data_or_null<int32_t>(sample_slots),
                            data_or_null<int64_t>(ids), data_or_null<float>(logprobs), data_or_null<int64_t>(ranks), rows,
                            columns);
}

PD_BUILD_OP(bireme_insert_requests)
    .Inputs(state_inputs<bireme::InsertRequestsState>({"ints", "floats", "tokens"}))
    .Outputs({"token_ids_all_out"})
    .SetInplaceMap({{"token_ids_all", "token_ids_all_out"}})
    .SetKernelFn(PD_KERNEL(StateOp<bireme::InsertRequestsState, InsertRequests>::run));
PD_BUILD_OP(bireme_pack_outputs)
    .Inputs(state_inputs<bireme::PackOutputsState>({"landing"}))
    .Outputs({"landing_out"})
    .SetInplaceMap({{"landing", "landing_out"}})
    .SetKernelFn(PD_KERNEL(StateOp<bireme::PackOutputsState, PackOutputs>::run));
PD_BUILD_OP(bireme_pack_logprobs)
    .Inputs(state_inputs<bireme::PackLogprobsState>({"landing", "sample_slots", "logprob_ids", "logprobs", "ranks"}))
    .Outputs({"landing_out"})
    .SetInplaceMap({{"landing", "landing_out"}})
    .SetKernelFn(PD_KERNEL(StateOp<bireme::PackLogprobsState, PackLogprobs>::run));
