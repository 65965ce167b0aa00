// The PTX instructions of the decode kernels, from their definition in NVIDIA's PTX ISA: a warp of fibers exchanges its registers.
#pragma once
#include "cuda_bf16.h"
#include "cuda_fp16.h"

namespace on_cpu {

inline float from_bits(uint16_t bits, __half) { return __half2float({bits}); }
inline float from_bits(uint16_t bits, __nv_bfloat16) { return __bfloat162float({bits}); }

// mma.m16n8k16.row.col, float32 sums: every lane computes its four elements from everyone's operands.
template <typename T>
void multiply(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  std::array<std::array<uint32_t, kLanes>, 4> all_a;
  for (int i = 0; i < 4; ++i) all_a[i] = exchange(a[i]);
  const std::array<std::array<uint32_t, kLanes>, 2> all_b = {exchange(b0), exchange(b1)};
  const auto element = [](uint32_t word, int i) { return from_bits(static_cast<uint16_t>(word >> 16 * i), T{}); };
  const auto a_at = [&](int row, int k) { return element(all_a[row / 8 + k / 8 * 2][row % 8 * 4 + k % 8 / 2], k % 2); };
  const auto b_at = [&](int k, int column) { return element(all_b[k / 8][column * 4 + k % 8 / 2], k % 2); };
  for (int i = 0; i < 4; ++i) {
    const int row = lane() / 4 + i / 2 * 8, column = lane() % 4 * 2 + i % 2;
    for (int k = 0; k < 16; ++k) sum[i] += a_at(row, k) * b_at(k, column);
  }
}

// movmatrix.m8n8.trans.b16.
inline uint32_t transposed(uint32_t pair) {
  const auto all = exchange(pair);
  const int row = lane() / 4, column = lane() % 4 * 2;
  const auto at = [&](int r, int c) { return all[r * 4 + c / 2] >> 16 * (c % 2) & 0xffff; };
  return at(column, row) | at(column + 1, row) << 16;
}

// ldmatrix.m8n8.x4.b16: lane 8 i + r names row r of matrix i.
inline void load_matrices(uint32_t (&r)[4], const void* row, bool turned) {
  const auto rows = exchange(row);
  for (int i = 0; i < 4; ++i) {
    const auto at = [&](int line, int column) { return static_cast<const uint16_t*>(rows[i * 8 + line])[column]; };
    const int line = lane() / 4, column = lane() % 4 * 2;
    const uint32_t low = turned ? at(column, line) : at(line, column), high = turned ? at(column + 1, line) : at(line, column + 1);
    r[i] = low | high << 16;
  }
}

// cp.async of 16 bytes, at once.
inline void copy(void* to, const void* from, bool present) {
  if (present) std::memcpy(to, from, 16); else std::memset(to, 0, 16);
}

}  // namespace on_cpu
