// Sampling ops: gather_last_tokens, apply_penalties, sample, token_logprobs.
#include "kernels/layers/cuda/layers.h"
#include "kernels/sampling/cuda/sampling.h"
#include "kernels/layers/gather_rows.h"
#include "kernels/sampling/penalties.h"
#include "kernels/sampling/sample.h"
#include "kernels/sampling/token_logprobs.h"
#include "bindings/device.h"

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

std::vector<Tensor> GatherLastTokens(const Tensor& hidden, const Tensor& sample_rows) {
  const DataType dtype = float_type(hidden, "hidden");
  check_shape(hidden, "hidden", dtype, {kAnySize, kAnySize});
  check_shape(sample_rows, "sample_rows", DataType::INT32, {kAnySize});
  const int64_t rows = sample_rows.numel(), width = hidden.shape()[1];
  Tensor out = paddle::empty({rows, width}, dtype, hidden.place());
  if constexpr (kWithCuda) {
    if (hidden.is_gpu()) {
      PD_CHECK(width % 8 == 0, "hidden: has ", width, " columns, needs a multiple of 8 on the GPU");
      check_same_place(hidden, "hidden", sample_rows, "sample_rows");
      on_device([&] {
        bireme::gather_rows_cuda(hidden.data(), hidden.shape()[0], width, sample_rows.data<int32_t>(), rows, out.data(),
                                 stream_of(hidden));
      });
      return {out};
    }
  }
  bireme::gather_rows_cpu(data_or_null<float>(hidden), hidden.shape()[0], width, data_or_null<int32_t>(sample_rows), rows,
                          data_or_null<float>(out));
  return {out};
}

void ApplyPenalties(const Tensor& token_ids_all, const Tensor& prompt_lens, const Tensor& step_idx, const Tensor& eos_token_id,
                    const Tensor& stop_token_ids, const Tensor& min_dec_len, const Tensor& penalty_score,
                    const Tensor& presence_score, const Tensor& frequency_score, const Tensor& logit_bias_ids,
                    const Tensor& logit_bias_values, const Tensor& logits, const Tensor& sample_slots) {
  check_shape(token_ids_all, "token_ids_all", DataType::INT64, {kAnySize, kAnySize});
  const int64_t slots = token_ids_all.shape()[0];
  check_shape(prompt_lens, "prompt_lens", DataType::INT64, {slots});
  check_shape(step_idx, "step_idx", DataType::INT64, {slots});
  check_shape(eos_token_id, "eos_token_id", DataType::INT64, {slots, kAnySize});
  check_shape(stop_token_ids, "stop_token_ids", DataType::INT64, {slots, kAnySize});
  check_shape(min_dec_len, "min_dec_len", DataType::INT64, {slots});
  check_shape(penalty_score, "penalty_score", DataType::FLOAT32, {slots});
  check_shape(presence_score, "presence_score", DataType::FLOAT32, {slots});
  check_shape(frequency_score, "frequency_score", DataType::FLOAT32, {slots});
  check_shape(logit_bias_ids, "logit_bias_ids", DataType::INT64, {slots, kAnySize});
  const int64_t biases = logit_bias_ids.shape()[1];
  check_shape(logit_bias_values, "logit_bias_values", DataType::FLOAT32, {slots, biases});
  check_logits(logits);
  check_slots(sample_slots, logits.shape()[0], slots, logits.is_gpu());
  check_same_place(logits, "logits", token_ids_all, "token_ids_all");
  const bireme::PenaltyState state{token_ids_all.shape()[1],
                                   eos_token_id.shape()[1],
                                   stop_token_ids.shape()[1],
                                   biases,
                                   token_ids_all.data<int64_t>(),
                                   prompt_lens.data<int64_t>(),
                                   step_idx.data<int64_t>(),
                                   data_or_null<int64_t>(eos_token_id),
                                   data_or_null<int64_t>(stop_token_ids),
                                   min_dec_len.data<int64_t>(),
                                   penalty_score.data<float>(),
                                   presence_score.data<float>(),
                                   frequency_score.data<float>(),
                                   data_or_null<int64_t>(logit_bias_ids),
                                   data_or_null<float>(logit_bias_values)};
  if constexpr (kWithCuda) {
    if (logits.is_gpu()) {
      return on_device([&] {
        bireme::apply_penalties_cuda(state, slots, mutable_data<float>(logits), logits.shape()[1],
                                     sample_slots.data<int32_t>(), logits.shape()[0], stream_of(logits));
      });
    }
  }
  bireme::apply_penalties_cpu(state, data_or_null<float>(logits), logits.shape()[1], data_or_null<int32_t>(sample_slots),
                              logits.shape()[0]);
}

std::vector<Tensor> Sample(const Tensor& prompt_lens, const Tensor& step_idx, const Tensor& temperature, const Tensor& top_p,
                           const Tensor& min_p, const Tensor& top_k, const Tensor& seeds, const Tensor& logits,
                           const Tensor& sample_slots) {
  const int64_t slots = prompt_lens.numel();
  check_shape(prompt_lens, "prompt_lens", DataType::INT64, {slots});
  check_shape(step_idx, "step_idx", DataType::INT64, {slots});
  check_shape(temperature, "temperature", DataType::FLOAT32, {slots});
  check_shape(top_p, "top_p", DataType::FLOAT32, {slots});
  check_shape(min_p, "min_p", DataType::FLOAT32, {slots});
  check_shape(top_k, "top_k", DataType::INT32, {slots});
  check_shape(seeds, "seeds", DataType::INT64, {slots});
  check_logits(logits);
  const int64_t rows = logits.shape()[0];
  check_slots(sample_slots, rows, slots, logits.is_gpu());
  check_same_place(logits, "logits", prompt_lens, "prompt_lens");
  Tensor tokens = paddle::empty({rows}, DataType::INT64, logits.place());
  const bireme::SampleState state{prompt_lens.data<int64_t>(), step_idx.data<int64_t>(), temperature.data<float>(),
                                  top_p.data<float>(),         min_p.data<float>(),      top_k.data<int32_t>(),
                                  seeds.data<int64_t>()};
  if constexpr (kWithCuda) {
    if (logits.is_gpu()) {
      on_device([&] {
        bireme::sample_cuda(state, slots, logits.data<float>(), rows, logits.shape()[1], sample_slots.data<int32_t>(),
                            tokens.data<int64_t>(), stream_of(logits));
      });
      return {tokens};
    }
  }
  bireme::sample_cpu(state, data_or_null<float>(logits), rows, logits.shape()[1], data_or_null<int32_t>(sample_slots),
                     data_or_null<int64_t>(tokens));
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
    .Inputs({"hidden", "sample_rows"})
    .Outputs({"rows"})
    .SetKernelFn(PD_KERNEL(GatherLastTokens));
PD_BUILD_OP(bireme_apply_penalties)
    .Inputs({"token_ids_all", "prompt_lens", "step_idx", "eos_token_id", "stop_token_ids", "min_dec_len", "penalty_score",
             "presence_score", "frequency_score", "logit_bias_ids", "logit_bias_values", "logits", "sample_slots"})
    .Outputs({"logits_out"})
    .SetInplaceMap({{"logits", "logits_out"}})
    .SetKernelFn(PD_KERNEL(ApplyPenalties));
PD_BUILD_OP(bireme_sample)
    .Inputs({"prompt_lens", "step_idx", "temperature", "top_p", "min_p", "top_k", "seeds", "logits", "sample_slots"})
    .Outputs({"tokens"})
    .SetKernelFn(PD_KERNEL(Sample));
PD_BUILD_OP(bireme_token_logprobs)
    .Inputs({"logits", "tokens"})
    .Attrs({"num: int64_t"})
    .Outputs({"ids", "logprobs", "ranks"})
    .SetKernelFn(PD_KERNEL(TokenLogprobs));
