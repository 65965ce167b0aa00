// Decode attention for a test: the CUDA kernel on a CPU, with scratch of exactly the size that it asks for.
#include <limits>

#include "kernels/attention/cuda/attention_launch.cuh"

namespace bireme {
// What is known of a device is kept, so another number of multiprocessors is another device.
int current_device() { return on_cpu::multiprocessors; }
}  // namespace bireme

// The scratch's floats, before and behind which nothing may be written; negative: something was.
extern "C" int64_t decode_attention(int is_bfloat16, int multiprocessors, int seed, const void* qkv, void* k_cache, void* v_cache,
                                    const float* cos_sin, int max_positions, const int32_t* cu_seqlens_q, int max_rows_per_slot,
                                    int batch_invariant, float scale, void* out, const int32_t* sizes, const int32_t* positions,
                                    const int32_t* batch_ids, const int32_t* block_tables) {
  using namespace bireme;
  on_cpu::multiprocessors = multiprocessors, on_cpu::seed = seed;
  const CudaRows rows{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], sizes[7], positions, batch_ids, block_tables};
  CudaAttention attention{};
  attention.qkv = qkv, attention.k_cache = k_cache, attention.v_cache = v_cache;
  attention.cos_sin = cos_sin, attention.max_positions = max_positions;
  attention.cu_seqlens_q = cu_seqlens_q, attention.max_rows_per_slot = max_rows_per_slot;
  attention.batch_invariant = batch_invariant, attention.scale = scale, attention.out = out;
  const int64_t count = attention_partials(attention, rows), margin = 4096;
  // Nonsense inside: a partial result that is read was written in the same launch.
  std::vector<float> scratch(count + 2 * margin + 4, std::numeric_limits<float>::quiet_NaN());
  const auto address = reinterpret_cast<uintptr_t>(scratch.data() + margin);
  attention.partials = scratch.data() + margin + (16 - address % 16) % 16 / sizeof(float);
  constexpr float kMark = 1234.5f;
  float* const begin = attention.partials;
  std::fill(scratch.data(), begin, kMark);
  std::fill(begin + count, scratch.data() + scratch.size(), kMark);
  Launch launch{rows, attention, scale * 1.4426950408889634f};
  while (1 << launch.block_shift < rows.block_size) ++launch.block_shift;
  launch_decode_attention(is_bfloat16 ? Half::kBfloat16 : Half::kFloat16, launch, nullptr);
  const auto is_mark = [&](float value) { return value == kMark; };
  const bool intact = std::all_of(scratch.data(), begin, is_mark) && std::all_of(begin + count, scratch.data() + scratch.size(), is_mark);
  return intact ? count : -count;
}
