// State ops at the ends of a request's stay on the device: insert_requests, pack_outputs, pack_logprobs.
#include "kernels/state/cuda/state.h"
#include "kernels/state/insert_requests.h"
#include "kernels/state/pack_outputs.h"
#include "bindings/device.h"

using paddle::DataType;
using paddle::Tensor;

void InsertRequests(const Tensor& token_ids_all, const Tensor& prompt_lens, const Tensor& prefill_lens, const Tensor& step_idx,
                    const Tensor& seq_lens_this_time, const Tensor& seq_lens_encoder, const Tensor& seq_lens_decoder,
                    const Tensor& stop_flags, const Tensor& is_block_step, const Tensor& block_tables,
                    const Tensor& sampled_token_ids, const Tensor& num_sampled, const Tensor& stop_reason,
                    const Tensor& matched_stop, const Tensor& eos_token_id, const Tensor& stop_token_ids,
                    const Tensor& stop_seqs, const Tensor& stop_seqs_len, const Tensor& min_dec_len, const Tensor& max_dec_len,
                    const Tensor& temperature, const Tensor& top_p, const Tensor& min_p, const Tensor& penalty_score,
                    const Tensor& presence_score, const Tensor& frequency_score, const Tensor& top_k, const Tensor& seeds,
                    const Tensor& logit_bias_ids, const Tensor& logit_bias_values, const Tensor& num_logprobs,
                    const Tensor& ints, const Tensor& floats, const Tensor& tokens) {
  check_place(token_ids_all, "token_ids_all");
  check_shape(token_ids_all, "token_ids_all", DataType::INT64, {kAnySize, kAnySize});
  const int64_t slots = token_ids_all.shape()[0];
  check_shape(block_tables, "block_tables", DataType::INT32, {slots, kAnySize});
  check_shape(eos_token_id, "eos_token_id", DataType::INT64, {slots, kAnySize});
  check_shape(stop_token_ids, "stop_token_ids", DataType::INT64, {slots, kAnySize});
  check_shape(stop_seqs, "stop_seqs", DataType::INT64, {slots, kAnySize, kAnySize});
  check_shape(logit_bias_ids, "logit_bias_ids", DataType::INT64, {slots, kAnySize});
  const bireme::StateSizes sizes{slots,
                                 token_ids_all.shape()[1],
                                 block_tables.shape()[1],
                                 eos_token_id.shape()[1],
                                 stop_token_ids.shape()[1],
                                 stop_seqs.shape()[1],
                                 stop_seqs.shape()[2],
                                 logit_bias_ids.shape()[1]};
  check_shape(stop_seqs_len, "stop_seqs_len", DataType::INT32, {slots, sizes.stop_seqs});
  check_shape(logit_bias_values, "logit_bias_values", DataType::FLOAT32, {slots, sizes.logit_bias});
  check_shape(sampled_token_ids, "sampled_token_ids", DataType::INT64, {slots, 1});
  const struct {
    const Tensor& tensor;
    const char* name;
    DataType dtype;
  } vectors[] = {{prompt_lens, "prompt_lens", DataType::INT64},
                 {prefill_lens, "prefill_lens", DataType::INT64},
                 {step_idx, "step_idx", DataType::INT64},
                 {seq_lens_this_time, "seq_lens_this_time", DataType::INT32},
                 {seq_lens_encoder, "seq_lens_encoder", DataType::INT32},
                 {seq_lens_decoder, "seq_lens_decoder", DataType::INT32},
                 {stop_flags, "stop_flags", DataType::BOOL},
                 {is_block_step, "is_block_step", DataType::BOOL},
                 {num_sampled, "num_sampled", DataType::INT32},
                 {stop_reason, "stop_reason", DataType::INT32},
                 {matched_stop, "matched_stop", DataType::INT64},
                 {min_dec_len, "min_dec_len", DataType::INT64},
                 {max_dec_len, "max_dec_len", DataType::INT64},
                 {temperature, "temperature", DataType::FLOAT32},
                 {top_p, "top_p", DataType::FLOAT32},
                 {min_p, "min_p", DataType::FLOAT32},
                 {penalty_score, "penalty_score", DataType::FLOAT32},
                 {presence_score, "presence_score", DataType::FLOAT32},
                 {frequency_score, "frequency_score", DataType::FLOAT32},
                 {top_k, "top_k", DataType::INT32},
                 {seeds, "seeds", DataType::INT64},
                 {num_logprobs, "num_logprobs", DataType::INT32}};
  for (const auto& vector : vectors) check_shape(vector.tensor, vector.name, vector.dtype, {slots});

  check_shape(ints, "ints", DataType::INT64, {kAnySize, bireme::insert_int_columns(sizes)});
  const int64_t rows = ints.shape()[0];
  check_shape(floats, "floats", DataType::FLOAT32, {rows, bireme::kInsertFloatColumns + sizes.logit_bias});
  check_shape(tokens, "tokens", DataType::INT64, {rows, kAnySize});
  const int64_t width = tokens.shape()[1];
  const bool on_gpu = token_ids_all.is_gpu();
  check_staging(ints, "ints", on_gpu);
  check_staging(floats, "floats", on_gpu);
  check_staging(tokens, "tokens", on_gpu);
  const int64_t* values = data_or_null<int64_t>(ints);
  for (int64_t row = 0; row < rows && host_readable(ints); ++row) {
    const char* fault = bireme::insert_request_fault(sizes, values + row * ints.shape()[1], width);
    PD_CHECK(fault == nullptr, "ints: row ", row, " has an impossible ", fault, " for ", sizes.slots, " slots of ",
             sizes.max_model_len, " tokens and token rows of ", width);
  }

  const bireme::InsertTarget state{mutable_data<int64_t>(token_ids_all),
                                   mutable_data<int64_t>(prompt_lens),
                                   mutable_data<int64_t>(prefill_lens),
                                   mutable_data<int64_t>(step_idx),
                                   mutable_data<int32_t>(seq_lens_this_time),
                                   mutable_data<int32_t>(seq_lens_encoder),
                                   mutable_data<int32_t>(seq_lens_decoder),
                                   mutable_data<bool>(stop_flags),
                                   mutable_data<bool>(is_block_step),
                                   mutable_data<int32_t>(block_tables),
                                   mutable_data<int64_t>(sampled_token_ids),
                                   mutable_data<int32_t>(num_sampled),
                                   mutable_data<int32_t>(stop_reason),
                                   mutable_data<int64_t>(matched_stop),
                                   mutable_data<int64_t>(eos_token_id),
                                   mutable_data<int64_t>(stop_token_ids),
                                   mutable_data<int64_t>(stop_seqs),
                                   mutable_data<int32_t>(stop_seqs_len),
                                   mutable_data<int64_t>(min_dec_len),
                                   mutable_data<int64_t>(max_dec_len),
                                   mutable_data<float>(temperature),
                                   mutable_data<float>(top_p),
                                   mutable_data<float>(min_p),
                                   mutable_data<float>(penalty_score),
                                   mutable_data<float>(presence_score),
                                   mutable_data<float>(frequency_score),
                                   mutable_data<int32_t>(top_k),
                                   mutable_data<int64_t>(seeds),
                                   mutable_data<int64_t>(logit_bias_ids),
                                   mutable_data<float>(logit_bias_values),
                                   mutable_data<int32_t>(num_logprobs)};
  if constexpr (kWithCuda) {
    if (on_gpu) {
      return on_device([&] {
        bireme::insert_requests_cuda(sizes, state, rows, values, data_or_null<float>(floats), data_or_null<int64_t>(tokens),
                                     width, stream_of(token_ids_all));
      });
    }
  }
  bireme::insert_requests_cpu(sizes, state, rows, values, data_or_null<float>(floats), data_or_null<int64_t>(tokens), width);
}

void PackOutputs(const Tensor& seq_lens_decoder, const Tensor& sampled_token_ids, const Tensor& num_sampled,
                 const Tensor& stop_reason, const Tensor& matched_stop, const Tensor& not_need_stop, const Tensor& landing) {
  check_place(seq_lens_decoder, "seq_lens_decoder");
  const int64_t slots = seq_lens_decoder.numel();
  check_shape(seq_lens_decoder, "seq_lens_decoder", DataType::INT32, {slots});
  check_shape(sampled_token_ids, "sampled_token_ids", DataType::INT64, {slots, 1});
  check_shape(num_sampled, "num_sampled", DataType::INT32, {slots});
  check_shape(stop_reason, "stop_reason", DataType::INT32, {slots});
  check_shape(matched_stop, "matched_stop", DataType::INT64, {slots});
  check_shape(not_need_stop, "not_need_stop", DataType::BOOL, {1});
  check_tensor(landing, "landing", DataType::INT64, 1 + slots * bireme::kSlotFields);
  check_same_place(seq_lens_decoder, "seq_lens_decoder", landing, "landing");
  check_staging(not_need_stop, "not_need_stop", seq_lens_decoder.is_gpu());
  if constexpr (kWithCuda) {
    if (seq_lens_decoder.is_gpu()) {
      return on_device([&] {
        bireme::pack_outputs_cuda(seq_lens_decoder.data<int32_t>(), sampled_token_ids.data<int64_t>(),
                                  num_sampled.data<int32_t>(), stop_reason.data<int32_t>(), matched_stop.data<int64_t>(),
                                  not_need_stop.data<bool>(), slots, mutable_data<int64_t>(landing),
                                  stream_of(seq_lens_decoder));
      });
    }
  }
  bireme::pack_outputs_cpu(seq_lens_decoder.data<int32_t>(), sampled_token_ids.data<int64_t>(), num_sampled.data<int32_t>(),
                           stop_reason.data<int32_t>(), matched_stop.data<int64_t>(), *not_need_stop.data<bool>(), slots,
                           mutable_data<int64_t>(landing));
}

void PackLogprobs(const Tensor& num_sampled, const Tensor& num_logprobs, const Tensor& landing, const Tensor& sample_slots,
                  const Tensor& ids, const Tensor& logprobs, const Tensor& ranks) {
  check_place(num_sampled, "num_sampled");
  const int64_t slots = num_sampled.numel();
  check_shape(num_sampled, "num_sampled", DataType::INT32, {slots});
  check_shape(num_logprobs, "num_logprobs", DataType::INT32, {slots});
  check_shape(ids, "logprob_ids", DataType::INT64, {kAnySize, kAnySize});
  const int64_t rows = ids.shape()[0], columns = ids.shape()[1];
  check_shape(logprobs, "logprobs", DataType::FLOAT32, {rows, columns});
  check_shape(ranks, "ranks", DataType::INT64, {rows});
  check_slots(sample_slots, rows, slots, num_sampled.is_gpu());
  check_tensor(landing, "landing", DataType::INT64, 1 + slots * (bireme::kSlotFields + 4));
  const int64_t width = (landing.numel() - 1) / slots - bireme::kSlotFields, landing_columns = (width - 2) / 2;
  PD_CHECK(landing.numel() == 1 + slots * (bireme::kSlotFields + 2 + 2 * landing_columns), "landing: has ", landing.numel(),
           " elements, needs 1 + ", slots, " * (", bireme::kSlotFields, " + 2 + 2 * alternatives)");
  check_same_place(num_sampled, "num_sampled", landing, "landing", ids, "logprob_ids");
  if constexpr (kWithCuda) {
    if (num_sampled.is_gpu()) {
      return on_device([&] {
        bireme::pack_logprobs_cuda(num_sampled.data<int32_t>(), num_logprobs.data<int32_t>(), slots,
                                   mutable_data<int64_t>(landing), landing_columns, data_or_null<int32_t>(sample_slots),
                                   data_or_null<int64_t>(ids), data_or_null<float>(logprobs), data_or_null<int64_t>(ranks),
                                   rows, columns, stream_of(num_sampled));
      });
    }
  }
  bireme::pack_logprobs_cpu(num_sampled.data<int32_t>(), num_logprobs.data<int32_t>(), slots, mutable_data<int64_t>(landing),
                            landing_columns, data_or_null<int32_t>(sample_slots), data_or_null<int64_t>(ids),
                            data_or_null<float>(logprobs), data_or_null<int64_t>(ranks), rows, columns);
}

PD_BUILD_OP(bireme_insert_requests)
    .Inputs({"token_ids_all", "prompt_lens", "prefill_lens", "step_idx", "seq_lens_this_time", "seq_lens_encoder",
             "seq_lens_decoder", "stop_flags", "is_block_step", "block_tables", "sampled_token_ids", "num_sampled",
             "stop_reason", "matched_stop", "eos_token_id", "stop_token_ids", "stop_seqs", "stop_seqs_len", "min_dec_len",
             "max_dec_len", "temperature", "top_p", "min_p", "penalty_score", "presence_score", "frequency_score", "top_k",
             "seeds", "logit_bias_ids", "logit_bias_values", "num_logprobs", "ints", "floats", "tokens"})
    .Outputs({"token_ids_all_out"})
    .SetInplaceMap({{"token_ids_all", "token_ids_all_out"}})
    .SetKernelFn(PD_KERNEL(InsertRequests));
PD_BUILD_OP(bireme_pack_outputs)
    .Inputs({"seq_lens_decoder", "sampled_token_ids", "num_sampled", "stop_reason", "matched_stop", "not_need_stop", "landing"})
    .Outputs({"landing_out"})
    .SetInplaceMap({{"landing", "landing_out"}})
    .SetKernelFn(PD_KERNEL(PackOutputs));
PD_BUILD_OP(bireme_pack_logprobs)
    .Inputs({"num_sampled", "num_logprobs", "landing", "sample_slots", "logprob_ids", "logprobs", "ranks"})
    .Outputs({"landing_out"})
    .SetInplaceMap({{"landing", "landing_out"}})
    .SetKernelFn(PD_KERNEL(PackLogprobs));
