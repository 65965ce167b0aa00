// The beginning of a step: cleared slots, new blocks, resumed slots, lengths of this step.
#pragma once
#include "generated/slot_fields.h"

namespace bireme {

// Whether the table has a block for position `position`.
inline bool has_block(const int32_t* block_table, int64_t blocks, int64_t block_size, int64_t position) {
  const int64_t index = position / block_size;
  return index < blocks && block_table[index] >= 0;
}

// block_updates: n triples (slot, index, block), slots and indices in range.
void apply_step_cpu(const ApplyStepState& state, int64_t block_size, const int32_t* scheduled, const int32_t* cleared,
                    const int32_t* block_updates, int64_t n);

// Paused slots whose entry for position seq_lens_decoder is there go on.
void recover_block_cpu(const RecoverBlockState& state, int64_t block_size);

}  // namespace bireme
