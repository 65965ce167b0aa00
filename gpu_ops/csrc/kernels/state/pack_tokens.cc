#include "kernels/state/pack_tokens.h"

#include <algorithm>
#include <numeric>

namespace bireme {

int64_t pack_tokens_cpu(const PackTokensState& state, const PackedTokens& out, int64_t rows) {
  const int64_t slots = state.slots;
  const int64_t tokens = std::accumulate(state.seq_lens_this_time, state.seq_lens_this_time + slots, int64_t{0});
  if (tokens > rows) return tokens;

  int32_t row = 0, sampling = 0;
  for (int64_t slot = 0; slot < slots; ++slot) {
    const int32_t computed = state.seq_lens_decoder[slot], now = state.seq_lens_this_time[slot];
    out.cu_seqlens_q[slot] = row;
    std::copy_n(state.token_ids_all + slot * state.max_model_len + computed, now, out.ids + row);
    std::iota(out.positions + row, out.positions + row + now, computed);
    std::fill_n(out.slots + row, now, static_cast<int32_t>(slot));
    row += now;
    if (now > 0 && computed + now == state.prompt_lens[slot] + state.step_idx[slot]) {
      out.sample_rows[sampling] = row - 1;
      out.sample_slots[sampling++] = static_cast<int32_t>(slot);
    }
  }
  out.cu_seqlens_q[slots] = row;
  std::fill(out.ids + row, out.ids + rows, 0);
  std::fill(out.positions + row, out.positions + rows, 0);
  std::fill(out.slots + row, out.slots + rows, -1);
  std::fill(out.sample_rows + sampling, out.sample_rows + slots, -1);
  std::fill(out.sample_slots + sampling, out.sample_slots + slots, -1);
  out.counts[0] = row;
  out.counts[1] = sampling;
  return tokens;
}

}  // namespace bireme
