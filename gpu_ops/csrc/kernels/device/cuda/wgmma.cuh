// Matrix products of a warpgroup (four warps) on Hopper's tensor cores, the barriers that hand it its operands, and how these lie
// in shared memory. Source: PTX ISA 8.0 and later, "Asynchronous warpgroup level matrix instructions"; compute capability 9.0a.
//
// Operands lie in panels of 64 columns: rows of 128 bytes, of whose eight 16-byte pieces number i of row r stands at place
// i ^ r % 8 ("128-byte swizzle"). A panel begins at a multiple of 1,024 bytes.
#pragma once
#include "kernels/device/cuda/async_copy.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define BIREME_HAS_WGMMA 1
#endif

namespace bireme {

constexpr int kPanelColumns = 64, kPanelRowBytes = 128;

// Byte of a panel where the piece of 8 elements `piece` of row `row` begins.
__device__ inline int panel_offset(int row, int piece) { return row * kPanelRowBytes + ((piece ^ row % 8) << 4); }

// What tells the tensor cores where an operand lies: `panel_stride` bytes from one panel of 64 columns to the next, where the
// instruction takes several.
__device__ inline uint64_t operand_at(uint32_t address, int panel_stride) {
  constexpr uint64_t kEightRows = 8 * kPanelRowBytes / 16, kSwizzle128 = 1;
  return (address & 0x3ffff) >> 4 | static_cast<uint64_t>(panel_stride >> 4) << 16 | kEightRows << 32 | kSwizzle128 << 62;
}

// What to add for an operand that lies `bytes` further on.
__device__ constexpr int operand_offset(int bytes) { return bytes / 16; }

#ifdef BIREME_HAS_WGMMA

// A value that is the same in all threads of a warp: the compiler does not see that by itself, and would serialize products in
// branches that depend on it.
__device__ inline int same_in_warp(int value) { return __shfl_sync(kAllLanes, value, 0); }

// Registers written by other instructions are seen by products that begin after this.
__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ inline void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// The compiler does not know that products go on after their instruction: reads of sums stay behind this where it follows
// wait_products, and writes of sums and factors before it where it precedes begin_products.
template <int kCount>
__device__ inline void settle(float (&sums)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}
template <int kSteps>
__device__ inline void settle(uint32_t (&factors)[kSteps][4]) {
#pragma unroll
  for (int i = 0; i < kSteps * 4; ++i) asm volatile("" : "+r"(factors[i / 4][i % 4])::"memory");
}

// The registers of a thread's sums, as text of an instruction and as its operands.
#define BIREME_SUMS_32 \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
#define BIREME_SUMS_64 \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
#define BIREME_OPERANDS_32 \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), \
  "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), \
  "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), \
  "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define BIREME_OPERANDS_64 \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), \
  "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), \
  "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), \
  "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), \
  "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), \
  "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), \
  "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), \
  "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])

// sums [64, 128] = or += A [64, 16] B [16, 128]; A's rows and B's columns are rows of panels, their 16 elements lie in one panel.
// A thread holds, of rows 16 (warp % 4) + lane / 4 and the same + 8, columns 8 n + 2 (lane % 4) and the next: d[4 n] to
// d[4 n + 3].
template <typename T>
__device__ inline void multiply(float (&d)[64], uint64_t a, uint64_t b, bool adds);
#define BIREME_MULTIPLY(T, kType)                                                                     \
  template <>                                                                                         \
  __device__ inline void multiply<T>(float (&d)[64], uint64_t a, uint64_t b, bool adds) {             \
    asm volatile("{ .reg .pred adds; setp.ne.b32 adds, %66, 0; "                                      \
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32." kType "." kType " " BIREME_SUMS_64    \
                 "%64, %65, adds, 1, 1, 0, 0; }"                                                      \
                 : BIREME_OPERANDS_64                                                                 \
                 : "l"(a), "l"(b), "r"(static_cast<int>(adds)));                                      \
  }
BIREME_MULTIPLY(__nv_bfloat16, "bf16")
BIREME_MULTIPLY(__half, "f16")

// sums [64, N] += A [64, 16] B [16, N], N = 128 or 64: A comes from registers, laid out like the upper operand of mma.cuh, and
// B's rows are rows of panels.
template <typename T>
__device__ inline void multiply_add(float (&d)[64], const uint32_t (&a)[4], uint64_t b);
template <typename T>
__device__ inline void multiply_add(float (&d)[32], const uint32_t (&a)[4], uint64_t b);
#define BIREME_MULTIPLY_ADD(T, kType, kSums, kShape, SUMS, OPERANDS, A, B)                            \
  template <>                                                                                         \
  __device__ inline void multiply_add<T>(float (&d)[kSums], const uint32_t (&a)[4], uint64_t b) {     \
    asm volatile("{ .reg .pred adds; setp.eq.b32 adds, 0, 0; "                                        \
                 "wgmma.mma_async.sync.aligned." kShape ".f32." kType "." kType " " SUMS              \
                 A ", " B ", adds, 1, 1, 1; }"                                                        \
                 : OPERANDS                                                                           \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                               \
  }
#define BIREME_MULTIPLY_ADDS(T, kType)                                                                            \
  BIREME_MULTIPLY_ADD(T, kType, 64, "m64n128k16", BIREME_SUMS_64, BIREME_OPERANDS_64, "{%64, %65, %66, %67}", "%68") \
  BIREME_MULTIPLY_ADD(T, kType, 32, "m64n64k16", BIREME_SUMS_32, BIREME_OPERANDS_32, "{%32, %33, %34, %35}", "%36")
BIREME_MULTIPLY_ADDS(__nv_bfloat16, "bf16")
BIREME_MULTIPLY_ADDS(__half, "f16")

// A barrier in shared memory whose phase ends when `count` arrivals have come.
class Barrier {
 public:
  __device__ void init(int count) { asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(address()), "r"(count) : "memory"); }
  __device__ void arrive() { asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(address()) : "memory"); }
  // Arrives when all copies are done that this thread has begun (cp.async).
  __device__ void arrive_after_copies() {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(address()) : "memory");
  }
  // Waits for the end of phase 0, 1, 2, ...
  __device__ void wait(int phase) {
    asm volatile(
        "{ .reg .pred done;\n"
        "again%=: mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
        "@!done bra again%=; }" ::"r"(address()), "r"(phase & 1) : "memory");
  }

 private:
  __device__ uint32_t address() { return shared_address(&state_); }
  uint64_t state_;
};

// What others have written to shared memory and this thread has waited for is seen by its products.
__device__ inline void show_to_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Moves registers between warpgroups of a block.
template <int kRegisters>
__device__ inline void shrink_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters)); }
template <int kRegisters>
__device__ inline void grow_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters)); }

#endif

}  // namespace bireme
