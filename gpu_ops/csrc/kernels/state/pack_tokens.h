// This step's tokens, row by row, and the rows that sample.
#pragma once
#include <cstdint>

namespace bireme {

struct PackedTokens {
  int64_t* ids;             // [rows]
  int32_t *positions, *slots;  // [rows]
  int32_t* cu_seqlens_q;    // [slots + 1]
  int32_t *sample_rows, *sample_slots;  // [slots]
  int32_t* counts;          // [2]
};

// Returns the number of tokens; when it exceeds `rows`, nothing was written.
int64_t pack_tokens_cpu(const int64_t* token_ids_all, const int64_t* prompt_lens, const int64_t* step_idx,
                        const int32_t* seq_lens_this_time, const int32_t* seq_lens_decoder, int64_t slots, int64_t max_model_len,
                        const PackedTokens& out, int64_t rows);

}  // namespace bireme
