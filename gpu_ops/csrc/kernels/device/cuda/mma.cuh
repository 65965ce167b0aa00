// Tensor core products of 16 x 16 by 16 x 8, operands of 16 bits, float32 sums.
//
// A thread of the warp holds, with line = lane / 4 and quad = lane % 4: of A rows line and line + 8, columns 2 quad, 2 quad + 1
// and the same + 8; of B those rows of column line; of the sums rows line and line + 8, columns 2 quad and 2 quad + 1.
#pragma once
#include "kernels/device/cuda/common.cuh"

namespace bireme {

template <typename T>
__device__ inline void mma(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ inline void mma<__half>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ inline void mma<__nv_bfloat16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The dimension that is summed over may be taken in any order, the same in A and B. Where a thread loads 16 bytes, elements
// 8 quad to 8 quad + 7 of 32, words 0 and 1 make its part of a first product, words 2 and 3 of a second; so operands come
// from memory to registers without a detour through shared memory.
template <typename T>
__device__ inline void mma_32(float (&sum)[4], const uint4& upper, const uint4& lower, const uint4& b) {
  mma<T>(sum, {upper.x, lower.x, upper.y, lower.y}, b.x, b.y);
  mma<T>(sum, {upper.z, lower.z, upper.w, lower.w}, b.z, b.w);
}

}  // namespace bireme
