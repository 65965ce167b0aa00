// This step's tokens, row by row, and the rows that sample.
#pragma once
#include "generated/slot_fields.h"

namespace bireme {

struct PackedTokens {
  int64_t* ids;             // [rows]
  int32_t *positions, *slots;  // [rows]
  int32_t* cu_seqlens_q;    // [slots + 1]
  int32_t *sample_rows, *sample_slots;  // [slots]
  int32_t* counts;          // [2]
};

// Returns the number of tokens; when it exceeds `rows`, nothing was written.
int64_t pack_tokens_cpu(const PackTokensState& state, const PackedTokens& out, int64_t rows);

}  // namespace bireme
