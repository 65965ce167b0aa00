// As much of CUDA as the decode kernels use, on a CPU: threads of a block are fibers, blocks run one after the other in a random
// order. It is for tests of what kernels compute and where they write, not of how threads may interleave inside a block.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#define __device__
#define __host__
#define __global__
#define __shared__ static
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)

struct alignas(8) uint2 { uint32_t x, y; };
struct alignas(16) uint4 { uint32_t x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
using std::max;
using std::min;

namespace on_cpu {

constexpr int kLanes = 32;
constexpr size_t kStackBytes = 1 << 17;

struct Fiber {
  ucontext_t context;  // to begin with
  jmp_buf jump;        // to go on with: jumps are quicker, because they leave signals alone
  bool has_begun = false, is_done = false;
};

// Stacks serve one block after the other.
inline char* stack_of(size_t fiber) {
  static std::vector<std::unique_ptr<char[]>> stacks;
  while (stacks.size() <= fiber) stacks.emplace_back(new char[kStackBytes]);
  return stacks[fiber].get();
}

// Threads that meet: whoever comes waits until all have come. Values of two rounds are kept, so that one meeting a round is enough.
struct Meeting {
  int threads = 0, arrived = 0;
  unsigned round = 0;
  uint64_t values[2][kLanes];
};

struct Block {
  dim3 grid, index, threads;
  std::vector<Fiber> fibers;
  std::vector<Meeting> warps;
  Meeting whole;
  std::vector<unsigned char> dynamic_shared;
  ucontext_t outside;
  unsigned current = 0;
  std::function<void()> body;
};

inline Block* block = nullptr;
inline int multiprocessors = 4;    // of every device
inline uint32_t seed = 0;          // of the order of blocks

inline void next_fiber() {
  const unsigned from = block->current;
  do block->current = (block->current + 1) % block->fibers.size();
  while (block->fibers[block->current].is_done);
  Fiber& to = block->fibers[block->current];
  if (block->current == from || _setjmp(block->fibers[from].jump)) return;
  if (to.has_begun) _longjmp(to.jump, 1);
  to.has_begun = true;
  setcontext(&to.context);
}

inline void meet(Meeting& meeting) {
  const unsigned round = meeting.round;
  if (++meeting.arrived == meeting.threads) {
    meeting.arrived = 0;
    ++meeting.round;
    return;
  }
  for (size_t turns = 0; meeting.round == round; ++turns) {
    if (turns > 1000000) std::abort();  // some threads never come
    next_fiber();
  }
}

inline int lane() { return block->current % kLanes; }

// Everyone's value, after all lanes have given theirs.
template <typename T>
std::array<T, kLanes> exchange(T value) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  Meeting& warp = block->warps[block->current / kLanes];
  uint64_t* values = warp.values[warp.round % 2];
  std::memcpy(&values[lane()], &value, sizeof(T));
  meet(warp);
  std::array<T, kLanes> all;
  for (int i = 0; i < kLanes; ++i) std::memcpy(&all[i], &values[i], sizeof(T));
  return all;
}

inline void run_fiber() {
  block->body();
  block->fibers[block->current].is_done = true;
  for (const Fiber& fiber : block->fibers) {
    if (!fiber.is_done) next_fiber();
  }
  setcontext(&block->outside);
}

inline void run_block(dim3 grid, dim3 index, int threads, size_t shared_bytes, std::function<void()> body) {
  Block own;
  own.grid = grid, own.index = index, own.threads = dim3(threads), own.body = std::move(body);
  own.fibers.resize(threads);
  own.warps.resize(threads / kLanes);
  for (Meeting& warp : own.warps) warp.threads = kLanes;
  own.whole.threads = threads;
  own.dynamic_shared.assign(shared_bytes + 16, 0xff);
  for (int i = 0; i < threads; ++i) {
    ucontext_t& context = own.fibers[i].context;
    getcontext(&context);
    context.uc_stack.ss_sp = stack_of(i);
    context.uc_stack.ss_size = kStackBytes;
    makecontext(&context, run_fiber, 0);
  }
  block = &own;
  own.fibers[0].has_begun = true;
  swapcontext(&own.outside, &own.fibers[0].context);
  block = nullptr;
}

// A coordinate that is read like a number, whoever runs.
template <unsigned (*kRead)()>
struct Coordinate {
  operator unsigned() const { return kRead(); }
};
template <unsigned (*kX)(), unsigned (*kY)()>
struct Index {
  Coordinate<kX> x;
  Coordinate<kY> y;
};
inline unsigned none() { return 0; }
inline unsigned one() { return 1; }
inline unsigned thread() { return block->current; }
inline unsigned threads() { return block->threads.x; }
inline unsigned block_x() { return block->index.x; }
inline unsigned block_y() { return block->index.y; }
inline unsigned grid_x() { return block->grid.x; }
inline unsigned grid_y() { return block->grid.y; }
inline unsigned char* dynamic_shared() {
  const auto address = reinterpret_cast<uintptr_t>(block->dynamic_shared.data());
  return reinterpret_cast<unsigned char*>((address + 15) / 16 * 16);
}

}  // namespace on_cpu

inline const on_cpu::Index<on_cpu::thread, on_cpu::none> threadIdx{};
inline const on_cpu::Index<on_cpu::threads, on_cpu::one> blockDim{};
inline const on_cpu::Index<on_cpu::block_x, on_cpu::block_y> blockIdx{};
inline const on_cpu::Index<on_cpu::grid_x, on_cpu::grid_y> gridDim{};

inline void __syncthreads() { on_cpu::meet(on_cpu::block->whole); }
inline void __syncwarp() { on_cpu::exchange(0); }
inline void __threadfence() {}
inline uintptr_t __cvta_generic_to_shared(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); }
template <typename T>
T __shfl_sync(unsigned, T value, int source) { return on_cpu::exchange(value)[source]; }
template <typename T>
T __shfl_up_sync(unsigned, T value, int offset) {
  const int from = on_cpu::lane() - offset;
  return on_cpu::exchange(value)[from < 0 ? on_cpu::lane() : from];
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int offset) { return on_cpu::exchange(value)[on_cpu::lane() ^ offset]; }
inline unsigned __ballot_sync(unsigned, bool value) {
  unsigned mask = 0;
  const auto all = on_cpu::exchange(value);
  for (int i = 0; i < on_cpu::kLanes; ++i) mask |= unsigned{all[i]} << i;
  return mask;
}
inline bool __any_sync(unsigned mask, bool value) { return __ballot_sync(mask, value) != 0; }
inline int __ffs(unsigned value) { return __builtin_ffs(static_cast<int>(value)); }
inline int atomicAdd(int* to, int value) {
  const int before = *to;
  *to += value;
  return before;
}
template <typename T>
T __ldcg(const T* from) { return *from; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fmaf(a, b, c); }
inline int __float2int_ru(float value) { return static_cast<int>(std::ceil(value)); }
inline uint32_t __byte_perm(uint32_t low, uint32_t high, unsigned selector) {
  const uint64_t bytes = uint64_t{high} << 32 | low;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) result |= static_cast<uint32_t>(bytes >> ((selector >> 4 * i & 7) * 8) & 0xff) << 8 * i;
  return result;
}

using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
inline const char* cudaGetErrorString(cudaError_t) { return "no error is known here"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
using cudaStream_t = struct CUstream_st*;
inline cudaError_t cudaMalloc(void** to, size_t bytes) { return (*to = std::malloc(bytes)) ? cudaSuccess : 1; }
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) { return std::memset(to, value, bytes), cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrComputeCapabilityMajor, cudaDevAttrMaxSharedMemoryPerBlockOptin };
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const int shared_bytes = on_cpu::multiprocessors < 8 ? 1 << 16 : 1 << 17;  // small devices have little of it
  *value = attribute == cudaDevAttrMultiProcessorCount ? on_cpu::multiprocessors : attribute == cudaDevAttrComputeCapabilityMajor ? 8 : shared_bytes;
  return cudaSuccess;
}
constexpr int cudaLaunchAttributeProgrammaticStreamSerialization = 1, cudaLaunchAttributeClusterDimension = 2;
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
template <typename F>
cudaError_t cudaFuncSetAttribute(F*, cudaFuncAttribute, int) { return cudaSuccess; }
struct cudaLaunchAttribute {
  int id;
  struct { int programmaticStreamSerializationAllowed; struct { unsigned x, y, z; } clusterDim; } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  int numAttrs;
};
template <typename... Parameters>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Parameters... arguments) {
  const dim3 grid = config->gridDim;
  std::vector<unsigned> order(grid.x * grid.y);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(order.begin(), order.end(), std::mt19937(on_cpu::seed));
  for (const unsigned i : order) {
    on_cpu::run_block(grid, dim3(i % grid.x, i / grid.x), config->blockDim.x, config->dynamicSmemBytes, [&] { kernel(arguments...); });
  }
  return cudaSuccess;
}
