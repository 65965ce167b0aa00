// New requests enter their slots.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define BIREME_HOST_DEVICE __host__ __device__
#else
#define BIREME_HOST_DEVICE
#endif

namespace bireme {

// Sizes of the state: B slots, M tokens and NB blocks a slot, E EOS ids, ST stop ids, S sequences of at most L ids, LB biases.
struct StateSizes {
  int64_t slots, max_model_len, blocks, eos, stop_ids, stop_seqs, stop_seq_len, logit_bias;
};

// The fixed columns of `ints`; then follow E eos, ST stop ids, S lengths, S*L sequence ids, LB bias ids.
enum InsertColumn { kSlot, kPromptLen, kPrefillLen, kStepIdx, kNumComputed, kMinDecLen, kMaxDecLen, kTopK, kSeed, kNumLogprobs,
                    kInsertColumns };

inline int64_t insert_int_columns(const StateSizes& sizes) {
  return kInsertColumns + sizes.eos + sizes.stop_ids + sizes.stop_seqs + sizes.stop_seqs * sizes.stop_seq_len + sizes.logit_bias;
}

// temperature, top_p, min_p, penalty_score, presence_score, frequency_score; then follow LB bias values.
constexpr int64_t kInsertFloatColumns = 6;

struct InsertTarget {
  int64_t *token_ids_all, *prompt_lens, *prefill_lens, *step_idx;
  int32_t *seq_lens_this_time, *seq_lens_encoder, *seq_lens_decoder;
  bool *stop_flags, *is_block_step;
  int32_t* block_tables;
  int64_t* sampled_token_ids;
  int32_t *num_sampled, *stop_reason;
  int64_t *matched_stop, *eos_token_id, *stop_token_ids, *stop_seqs;
  int32_t* stop_seqs_len;
  int64_t *min_dec_len, *max_dec_len;
  float *temperature, *top_p, *min_p, *penalty_score, *presence_score, *frequency_score;
  int32_t* top_k;
  int64_t *seeds, *logit_bias_ids;
  float* logit_bias_values;
  int32_t* num_logprobs;
};

// What a request sets besides its rows of tokens, ids and blocks: one value a field of its slot.
BIREME_HOST_DEVICE inline void insert_values(const InsertTarget& state, const int64_t* ints, const float* floats) {
  const int64_t slot = ints[kSlot];
  state.prompt_lens[slot] = ints[kPromptLen];
  state.prefill_lens[slot] = ints[kPrefillLen];
  state.step_idx[slot] = ints[kStepIdx];
  state.seq_lens_this_time[slot] = 0;
  state.seq_lens_encoder[slot] = 0;
  state.seq_lens_decoder[slot] = static_cast<int32_t>(ints[kNumComputed]);
  state.stop_flags[slot] = false;
  state.is_block_step[slot] = false;
  state.sampled_token_ids[slot] = -1;
  state.num_sampled[slot] = 0;
  state.stop_reason[slot] = 0;
  state.matched_stop[slot] = -1;
  state.min_dec_len[slot] = ints[kMinDecLen];
  state.max_dec_len[slot] = ints[kMaxDecLen];
  state.top_k[slot] = static_cast<int32_t>(ints[kTopK]);
  state.seeds[slot] = ints[kSeed];
  state.num_logprobs[slot] = static_cast<int32_t>(ints[kNumLogprobs]);
  state.temperature[slot] = floats[0];
  state.top_p[slot] = floats[1];
  state.min_p[slot] = floats[2];
  state.penalty_score[slot] = floats[3];
  state.presence_score[slot] = floats[4];
  state.frequency_score[slot] = floats[5];
}

// The column of row `ints` whose value is out of range as a name, or null. `width`: tokens a row of the caller holds.
const char* insert_request_fault(const StateSizes& sizes, const int64_t* ints, int64_t width);

// n rows; every row must have passed insert_request_fault.
void insert_requests_cpu(const StateSizes& sizes, const InsertTarget& state, int64_t n, const int64_t* ints, const float* floats,
                         const int64_t* tokens, int64_t width);

}  // namespace bireme
