// State ops that move a step along: apply_step, recover_block, pack_tokens, detect_stop, update_inputs.
#include "kernels/state/apply_step.h"
#include "kernels/state/cuda/state.h"
#include "kernels/state/detect_stop.h"
#include "kernels/state/pack_tokens.h"
#include "kernels/state/update_inputs.h"
#include "bindings/device.h"

using paddle::DataType;
using paddle::Tensor;

namespace {

struct TableSizes {
  int64_t slots, blocks;
};

// Block tables fix the number of slots; everything else is held against it.
TableSizes check_block_tables(const Tensor& block_tables, int64_t block_size) {
  check_place(block_tables, "block_tables");
  check_shape(block_tables, "block_tables", DataType::INT32, {kAnySize, kAnySize});
  PD_CHECK(block_size > 0, "block_size: is ", block_size, ", needs at least 1");
  return {block_tables.shape()[0], block_tables.shape()[1]};
}

struct HistorySizes {
  int64_t slots, max_model_len;
};

HistorySizes check_history(const Tensor& token_ids_all, const Tensor& prompt_lens, const Tensor& step_idx) {
  check_place(token_ids_all, "token_ids_all");
  check_shape(token_ids_all, "token_ids_all", DataType::INT64, {kAnySize, kAnySize});
  const int64_t slots = token_ids_all.shape()[0];
  check_shape(prompt_lens, "prompt_lens", DataType::INT64, {slots});
  check_shape(step_idx, "step_idx", DataType::INT64, {slots});
  return {slots, token_ids_all.shape()[1]};
}

// The R sampled tokens; sample_slots may be longer. Returns R.
int64_t check_sampled(const Tensor& tokens, const Tensor& sample_slots, int64_t slots, const Tensor& state) {
  check_shape(tokens, "tokens", DataType::INT64, {kAnySize});
  const int64_t rows = tokens.numel();
  check_slots(sample_slots, rows, slots, state.is_gpu());
  check_staging(tokens, "tokens", state.is_gpu());
  return rows;
}

void check_flags(const Tensor& stop_flags, const Tensor& is_block_step, int64_t slots) {
  check_shape(stop_flags, "stop_flags", DataType::BOOL, {slots});
  check_shape(is_block_step, "is_block_step", DataType::BOOL, {slots});
}

void check_seq_lens(const Tensor& this_time, const Tensor& encoder, const Tensor& decoder, int64_t slots) {
  check_shape(this_time, "seq_lens_this_time", DataType::INT32, {slots});
  check_shape(encoder, "seq_lens_encoder", DataType::INT32, {slots});
  check_shape(decoder, "seq_lens_decoder", DataType::INT32, {slots});
}

void check_block_updates(const Tensor& block_updates, const TableSizes& sizes) {
  check_shape(block_updates, "block_updates", DataType::INT32, {kAnySize, 3});
  if (!host_readable(block_updates)) return;
  const int32_t* update = data_or_null<int32_t>(block_updates);
  for (int64_t row = 0; row < block_updates.shape()[0]; ++row, update += 3) {
    PD_CHECK(update[0] >= 0 && update[0] < sizes.slots, "block_updates: row ", row, " names slot ", update[0],
             ", needs 0 to ", sizes.slots - 1);
    PD_CHECK(update[1] >= 0 && update[1] < sizes.blocks, "block_updates: row ", row, " names index ", update[1],
             ", needs 0 to ", sizes.blocks - 1);
  }
}

}  // namespace

void ApplyStep(const Tensor& prompt_lens, const Tensor& prefill_lens, const Tensor& step_idx, const Tensor& seq_lens_this_time,
               const Tensor& seq_lens_encoder, const Tensor& seq_lens_decoder, const Tensor& stop_flags,
               const Tensor& is_block_step, const Tensor& block_tables, const Tensor& scheduled, const Tensor& cleared,
               const Tensor& block_updates, int64_t block_size) {
  const TableSizes sizes = check_block_tables(block_tables, block_size);
  check_shape(prompt_lens, "prompt_lens", DataType::INT64, {sizes.slots});
  check_shape(prefill_lens, "prefill_lens", DataType::INT64, {sizes.slots});
  check_shape(step_idx, "step_idx", DataType::INT64, {sizes.slots});
  check_seq_lens(seq_lens_this_time, seq_lens_encoder, seq_lens_decoder, sizes.slots);
  check_flags(stop_flags, is_block_step, sizes.slots);
  check_shape(scheduled, "scheduled", DataType::INT32, {sizes.slots});
  check_shape(cleared, "cleared", DataType::INT32, {sizes.slots});
  check_block_updates(block_updates, sizes);
  const bireme::StepState state{prompt_lens.data<int64_t>(),
                                prefill_lens.data<int64_t>(),
                                step_idx.data<int64_t>(),
                                mutable_data<int32_t>(seq_lens_this_time),
                                mutable_data<int32_t>(seq_lens_encoder),
                                mutable_data<int32_t>(seq_lens_decoder),
                                mutable_data<bool>(stop_flags),
                                mutable_data<bool>(is_block_step),
                                mutable_data<int32_t>(block_tables)};
  const bool on_gpu = block_tables.is_gpu();
  check_staging(scheduled, "scheduled", on_gpu);
  check_staging(cleared, "cleared", on_gpu);
  check_staging(block_updates, "block_updates", on_gpu);
  if constexpr (kWithCuda) {
    if (on_gpu) {
      return on_device([&] {
        bireme::apply_step_cuda(state, sizes.slots, sizes.blocks, block_size, scheduled.data<int32_t>(),
                                cleared.data<int32_t>(), data_or_null<int32_t>(block_updates), block_updates.shape()[0],
                                stream_of(block_tables));
      });
    }
  }
  bireme::apply_step_cpu(state, sizes.slots, sizes.blocks, block_size, scheduled.data<int32_t>(), cleared.data<int32_t>(),
                         data_or_null<int32_t>(block_updates), block_updates.shape()[0]);
}

void RecoverBlock(const Tensor& seq_lens_decoder, const Tensor& is_block_step, const Tensor& block_tables, int64_t block_size) {
  const TableSizes sizes = check_block_tables(block_tables, block_size);
  check_shape(seq_lens_decoder, "seq_lens_decoder", DataType::INT32, {sizes.slots});
  check_shape(is_block_step, "is_block_step", DataType::BOOL, {sizes.slots});
  if constexpr (kWithCuda) {
    if (block_tables.is_gpu()) {
      return on_device([&] {
        bireme::recover_block_cuda(seq_lens_decoder.data<int32_t>(), mutable_data<bool>(is_block_step),
                                   block_tables.data<int32_t>(), sizes.slots, sizes.blocks, block_size,
                                   stream_of(block_tables));
      });
    }
  }
  bireme::recover_block_cpu(seq_lens_decoder.data<int32_t>(), mutable_data<bool>(is_block_step), block_tables.data<int32_t>(),
                            sizes.slots, sizes.blocks, block_size);
}

void PackTokens(const Tensor& token_ids_all, const Tensor& prompt_lens, const Tensor& step_idx, const Tensor& seq_lens_this_time,
                const Tensor& seq_lens_decoder, const Tensor& ids_remove_padding, const Tensor& positions,
                const Tensor& batch_id_per_token, const Tensor& cu_seqlens_q, const Tensor& sample_rows,
                const Tensor& sample_slots, const Tensor& counts) {
  const HistorySizes sizes = check_history(token_ids_all, prompt_lens, step_idx);
  check_shape(seq_lens_this_time, "seq_lens_this_time", DataType::INT32, {sizes.slots});
  check_shape(seq_lens_decoder, "seq_lens_decoder", DataType::INT32, {sizes.slots});
  check_shape(ids_remove_padding, "ids_remove_padding", DataType::INT64, {kAnySize});
  const int64_t rows = ids_remove_padding.numel();
  check_shape(positions, "positions", DataType::INT32, {rows});
  check_shape(batch_id_per_token, "batch_id_per_token", DataType::INT32, {rows});
  check_shape(cu_seqlens_q, "cu_seqlens_q", DataType::INT32, {sizes.slots + 1});
  check_shape(sample_rows, "sample_rows", DataType::INT32, {sizes.slots});
  check_shape(sample_slots, "sample_slots", DataType::INT32, {sizes.slots});
  check_shape(counts, "counts", DataType::INT32, {2});
  const bireme::PackedTokens out{data_or_null<int64_t>(ids_remove_padding), data_or_null<int32_t>(positions),
                                 data_or_null<int32_t>(batch_id_per_token), mutable_data<int32_t>(cu_seqlens_q),
                                 mutable_data<int32_t>(sample_rows), mutable_data<int32_t>(sample_slots),
                                 mutable_data<int32_t>(counts)};
  check_same_place(token_ids_all, "token_ids_all", ids_remove_padding, "ids_remove_padding", counts, "counts");
  if constexpr (kWithCuda) {
    if (token_ids_all.is_gpu()) {
      return on_device([&] {
        bireme::pack_tokens_cuda(token_ids_all.data<int64_t>(), prompt_lens.data<int64_t>(), step_idx.data<int64_t>(),
                                 seq_lens_this_time.data<int32_t>(), seq_lens_decoder.data<int32_t>(), sizes.slots,
                                 sizes.max_model_len, out, rows, stream_of(token_ids_all));
      });
    }
  }
  const int64_t tokens = bireme::pack_tokens_cpu(token_ids_all.data<int64_t>(), prompt_lens.data<int64_t>(),
                                                 step_idx.data<int64_t>(), seq_lens_this_time.data<int32_t>(),
                                                 seq_lens_decoder.data<int32_t>(), sizes.slots, sizes.max_model_len, out, rows);
  PD_CHECK(tokens <= rows, "ids_remove_padding: has ", rows, " rows, but the step has ", tokens, " tokens");
}

void DetectStop(const Tensor& token_ids_all, const Tensor& prompt_lens, const Tensor& step_idx, const Tensor& stop_flags,
                const Tensor& stop_reason, const Tensor& matched_stop, const Tensor& eos_token_id, const Tensor& stop_token_ids,
                const Tensor& stop_seqs, const Tensor& stop_seqs_len, const Tensor& min_dec_len, const Tensor& max_dec_len,
                const Tensor& tokens, const Tensor& sample_slots) {
  const HistorySizes sizes = check_history(token_ids_all, prompt_lens, step_idx);
  check_shape(stop_flags, "stop_flags", DataType::BOOL, {sizes.slots});
  check_shape(stop_reason, "stop_reason", DataType::INT32, {sizes.slots});
  check_shape(matched_stop, "matched_stop", DataType::INT64, {sizes.slots});
  check_shape(eos_token_id, "eos_token_id", DataType::INT64, {sizes.slots, kAnySize});
  check_shape(stop_token_ids, "stop_token_ids", DataType::INT64, {sizes.slots, kAnySize});
  check_shape(stop_seqs, "stop_seqs", DataType::INT64, {sizes.slots, kAnySize, kAnySize});
  check_shape(stop_seqs_len, "stop_seqs_len", DataType::INT32, {sizes.slots, stop_seqs.shape()[1]});
  check_shape(min_dec_len, "min_dec_len", DataType::INT64, {sizes.slots});
  check_shape(max_dec_len, "max_dec_len", DataType::INT64, {sizes.slots});
  const int64_t rows = check_sampled(tokens, sample_slots, sizes.slots, token_ids_all);
  const bireme::StopState state{sizes.slots,
                                sizes.max_model_len,
                                eos_token_id.shape()[1],
                                stop_token_ids.shape()[1],
                                stop_seqs.shape()[1],
                                stop_seqs.shape()[2],
                                token_ids_all.data<int64_t>(),
                                prompt_lens.data<int64_t>(),
                                step_idx.data<int64_t>(),
                                mutable_data<bool>(stop_flags),
                                mutable_data<int32_t>(stop_reason),
                                mutable_data<int64_t>(matched_stop),
                                data_or_null<int64_t>(eos_token_id),
                                data_or_null<int64_t>(stop_token_ids),
                                data_or_null<int64_t>(stop_seqs),
                                data_or_null<int32_t>(stop_seqs_len),
                                min_dec_len.data<int64_t>(),
                                max_dec_len.data<int64_t>()};
  if constexpr (kWithCuda) {
    if (token_ids_all.is_gpu()) {
      return on_device([&] {
        bireme::detect_stop_cuda(state, data_or_null<int64_t>(tokens), data_or_null<int32_t>(sample_slots), rows,
                                 stream_of(token_ids_all));
      });
    }
  }
  bireme::detect_stop_cpu(state, data_or_null<int64_t>(tokens), data_or_null<int32_t>(sample_slots), rows);
}

void UpdateInputs(const Tensor& token_ids_all, const Tensor& prompt_lens, const Tensor& step_idx,
                  const Tensor& seq_lens_this_time, const Tensor& seq_lens_encoder, const Tensor& seq_lens_decoder,
                  const Tensor& stop_flags, const Tensor& is_block_step, const Tensor& block_tables,
                  const Tensor& sampled_token_ids, const Tensor& num_sampled, const Tensor& not_need_stop, const Tensor& tokens,
                  const Tensor& sample_slots, int64_t block_size) {
  const HistorySizes sizes = check_history(token_ids_all, prompt_lens, step_idx);
  check_seq_lens(seq_lens_this_time, seq_lens_encoder, seq_lens_decoder, sizes.slots);
  check_flags(stop_flags, is_block_step, sizes.slots);
  const TableSizes table = check_block_tables(block_tables, block_size);
  check_shape(block_tables, "block_tables", DataType::INT32, {sizes.slots, table.blocks});
  check_shape(sampled_token_ids, "sampled_token_ids", DataType::INT64, {sizes.slots, 1});
  check_shape(num_sampled, "num_sampled", DataType::INT32, {sizes.slots});
  check_shape(not_need_stop, "not_need_stop", DataType::BOOL, {1});
  const int64_t rows = check_sampled(tokens, sample_slots, sizes.slots, token_ids_all);
  const bireme::UpdateState state{sizes.slots,
                                  sizes.max_model_len,
                                  table.blocks,
                                  block_size,
                                  mutable_data<int64_t>(token_ids_all),
                                  prompt_lens.data<int64_t>(),
                                  mutable_data<int64_t>(step_idx),
                                  mutable_data<int32_t>(seq_lens_this_time),
                                  mutable_data<int32_t>(seq_lens_encoder),
                                  mutable_data<int32_t>(seq_lens_decoder),
                                  stop_flags.data<bool>(),
                                  mutable_data<bool>(is_block_step),
                                  block_tables.data<int32_t>(),
                                  mutable_data<int64_t>(sampled_token_ids),
                                  mutable_data<int32_t>(num_sampled),
                                  mutable_data<bool>(not_need_stop)};
  check_staging(not_need_stop, "not_need_stop", token_ids_all.is_gpu());
  if constexpr (kWithCuda) {
    if (token_ids_all.is_gpu()) {
      return on_device([&] {
        bireme::update_inputs_cuda(state, data_or_null<int64_t>(tokens), data_or_null<int32_t>(sample_slots), rows,
                                   stream_of(token_ids_all));
      });
    }
  }
  bireme::update_inputs_cpu(state, data_or_null<int64_t>(tokens), data_or_null<int32_t>(sample_slots), rows);
}

// One tensor that an op writes is named as its output, one that is never empty: every further one would cost a Python
// object a step, and Paddle 2.6 refuses empty ones.
PD_BUILD_OP(bireme_apply_step)
    .Inputs({"prompt_lens", "prefill_lens", "step_idx", "seq_lens_this_time", "seq_lens_encoder", "seq_lens_decoder",
             "stop_flags", "is_block_step", "block_tables", "scheduled", "cleared", "block_updates"})
    .Attrs({"block_size: int64_t"})
    .Outputs({"seq_lens_this_time_out"})
    .SetInplaceMap({{"seq_lens_this_time", "seq_lens_this_time_out"}})
    .SetKernelFn(PD_KERNEL(ApplyStep));
PD_BUILD_OP(bireme_recover_block)
    .Inputs({"seq_lens_decoder", "is_block_step", "block_tables"})
    .Attrs({"block_size: int64_t"})
    .Outputs({"is_block_step_out"})
    .SetInplaceMap({{"is_block_step", "is_block_step_out"}})
    .SetKernelFn(PD_KERNEL(RecoverBlock));
PD_BUILD_OP(bireme_pack_tokens)
    .Inputs({"token_ids_all", "prompt_lens", "step_idx", "seq_lens_this_time", "seq_lens_decoder", "ids_remove_padding",
             "positions", "batch_id_per_token", "cu_seqlens_q", "sample_rows", "sample_slots", "counts"})
    .Outputs({"counts_out"})
    .SetInplaceMap({{"counts", "counts_out"}})
    .SetKernelFn(PD_KERNEL(PackTokens));
PD_BUILD_OP(bireme_detect_stop)
    .Inputs({"token_ids_all", "prompt_lens", "step_idx", "stop_flags", "stop_reason", "matched_stop", "eos_token_id",
             "stop_token_ids", "stop_seqs", "stop_seqs_len", "min_dec_len", "max_dec_len", "tokens", "sample_slots"})
    .Outputs({"stop_flags_out"})
    .SetInplaceMap({{"stop_flags", "stop_flags_out"}})
    .SetKernelFn(PD_KERNEL(DetectStop));
PD_BUILD_OP(bireme_update_inputs)
    .Inputs({"token_ids_all", "prompt_lens", "step_idx", "seq_lens_this_time", "seq_lens_encoder", "seq_lens_decoder",
             "stop_flags", "is_block_step", "block_tables", "sampled_token_ids", "num_sampled", "not_need_stop", "tokens",
             "sample_slots"})
    .Attrs({"block_size: int64_t"})
    .Outputs({"step_idx_out"})
    .SetInplaceMap({{"step_idx", "step_idx_out"}})
    .SetKernelFn(PD_KERNEL(UpdateInputs));
