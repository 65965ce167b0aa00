// Attention over the paged cache: single rows and chunks have kernels of their own.
#include "kernels/attention/cuda/attention.h"

#include "kernels/attention/cuda/attention_launch.cuh"

namespace bireme {

bool attention_supports(int head_dim, int q_heads, int kv_heads) {
  return is_gpu_head_dim(head_dim) && q_heads / kv_heads <= kMaxGroup;
}

void paged_attention_cuda(Half type, const CudaAttention& attention, const CudaRows& rows, Stream stream) {
  constexpr float kLog2E = 1.4426950408889634f;
  Launch launch{rows, attention, attention.scale * kLog2E};
  while (1 << launch.block_shift < rows.block_size) ++launch.block_shift;
  launch_decode_attention(type, launch, stream);
  if (attention.cu_seqlens_q && attention.max_rows_per_slot > 1 && !attention.batch_invariant) {
    if (!launch_chunk_attention_wgmma(type, launch, stream)) launch_chunk_attention(type, launch, stream);
  }
}

}  // namespace bireme
