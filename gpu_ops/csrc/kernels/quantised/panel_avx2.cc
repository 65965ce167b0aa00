// AVX2 with FMA and F16C: 8 columns a register. Products of quants of 4 and 5 bits are summed in 16 bits: 16 of the first are at
// most 16 * 15 * 127 and 8 of the others 8 * 31 * 127, which fits. Two products of 8-bit quants fit as |w| * (x with w's sign): at most
// 2 * 128 * 127.
#include "kernels/device/intrinsics.h"
#include "kernels/quantised/panel_registers.h"

#if defined(__x86_64__)

namespace bireme {
namespace {

constexpr int kRows = 8;

// The compiler neither moves a sum behind others nor orders its terms anew: it would keep all products in memory for that.
inline __attribute__((always_inline)) void keep_order(__m256i& sum) { asm("" : "+x"(sum)); }

inline __attribute__((always_inline)) __m256 broadcast_float(const int32_t* from) {
  return _mm256_castsi256_ps(_mm256_set1_epi32(*from));
}

inline __attribute__((always_inline)) __m256 load_halves(const uint8_t* from) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

inline __attribute__((always_inline)) __m256 load_bytes(const uint8_t* from) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
}

// The fifth bits of group g, where they belong in a quant.
template <int G>
inline __attribute__((always_inline)) __m256i fifth_bits(__m256i words) {
  const __m256i moved = G < 4 ? _mm256_slli_epi32(words, G < 4 ? 4 - G : 0) : _mm256_srli_epi32(words, G < 4 ? 0 : G - 4);
  return _mm256_and_si256(moved, _mm256_set1_epi8(16));
}

// The fifth and sixth bits of group g.
template <int G>
inline __attribute__((always_inline)) __m256i two_bits(__m256i words) {
  constexpr int place = G % 4;
  const __m256i moved = place < 2 ? _mm256_slli_epi32(words, place < 2 ? 4 - 2 * place : 0)
                                  : _mm256_srli_epi32(words, place < 2 ? 0 : 2 * place - 4);
  return _mm256_and_si256(moved, _mm256_set1_epi8(48));
}

inline __attribute__((always_inline)) __m256 load_signed_bytes(const uint8_t* from) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
}

// Quarters of a panel's columns that share the inputs which were read for one: as many as have their sums in registers. Reading the
// inputs is what takes longest otherwise.
template <class F, int R>
constexpr int quarters_at_once() {
  if (F::kBits == 8 || F::kIsCoded) return R <= 2 ? 2 : 1;
  return F::kBits > 4 || R > 4 ? 1 : R > 2 ? 2 : 4;
}

// Of two groups and Q quarters, added to `sum` where it is not the first.
template <class F, int R, int Q, int G, bool First>
inline __attribute__((always_inline)) void two_groups(const uint8_t* quants, const __m256i* fifths, const int32_t* x,
                                                      __m256i (*sum)[R]) {
  const __m256i low = _mm256_set1_epi8(15);
  __m256i first[Q], second[Q];
#pragma GCC unroll 4
  for (int q = 0; q < Q; ++q) {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(quants + G / 2 * kGroupStride + 32 * q));
    first[q] = _mm256_and_si256(both, low);
    second[q] = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
    if (F::kBits == 5) {
      first[q] = _mm256_or_si256(first[q], fifth_bits<G>(fifths[q]));
      second[q] = _mm256_or_si256(second[q], fifth_bits<G + 1>(fifths[q]));
    }
    if (F::kBits == 6) {
      first[q] = _mm256_or_si256(first[q], two_bits<G>(fifths[q]));
      second[q] = _mm256_or_si256(second[q], two_bits<G + 1>(fifths[q]));
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const __m256i early = _mm256_set1_epi32(x[G * R + r]), late = _mm256_set1_epi32(x[(G + 1) * R + r]);
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) {
      const __m256i products = _mm256_add_epi16(_mm256_maddubs_epi16(first[q], early), _mm256_maddubs_epi16(second[q], late));
      sum[q][r] = First ? products : _mm256_add_epi16(sum[q][r], products);
      keep_order(sum[q][r]);
    }
  }
}

// Products of 16 inputs, of half 0 or 1: those of 6-bit quants are at most 4 * 63 * 127 in 16 bits.
template <class F, int R, int Half>
inline __attribute__((always_inline)) void half_dots(const uint8_t* block, int quarter, const int32_t* x, __m256i* dot) {
  const __m256i ones = _mm256_set1_epi16(1);
  const uint8_t* quants = block + F::kQuantsOffset + 32 * quarter;
  const __m256i highs = _mm256_loadu_si256(
      reinterpret_cast<const __m256i*>(block + F::kHighOffset + Half * kGroupStride + 32 * quarter));
  __m256i sum[1][R];
  two_groups<F, R, 1, 4 * Half, true>(quants, &highs, x, sum);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const int32_t first = x[11 * R + r], all = Half == 0 ? first : x[10 * R + r] - first;
    dot[r] = _mm256_sub_epi32(_mm256_madd_epi16(sum[0][r], ones), _mm256_set1_epi32(all << F::kZeroShift));
  }
  two_groups<F, R, 1, 4 * Half + 2, true>(quants, &highs, x, sum);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) dot[r] = _mm256_add_epi32(dot[r], _mm256_madd_epi16(sum[0][r], ones));
}

// Of group g, where a quant is a signed byte.
template <class F>
inline __attribute__((always_inline)) __m256i signed_quants(const uint8_t* quants, int g) {
  const __m256i offset = _mm256_set1_epi8(-128);
  if (!F::kIsCoded) return _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(quants + g * kGroupStride)), offset);
  const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(quants + g / 2 * kGroupStride));
  const __m256i bits = _mm256_and_si256(g % 2 ? _mm256_srli_epi16(both, 4) : both, _mm256_set1_epi8(15));
  const __m256i codes = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(kCodes)));
  return _mm256_xor_si256(_mm256_shuffle_epi8(codes, bits), offset);
}

template <class F, int R, int Q>
inline __attribute__((always_inline)) void signed_dots(const uint8_t* quants, const int32_t* x, __m256i (*dot)[R]) {
  const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 8
  for (int g = 0; g < 8; ++g) {
    __m256i input[R];
    if (Q > 1) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) input[r] = _mm256_set1_epi32(x[g * R + r]);
    }
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) {
      const __m256i value = signed_quants<F>(quants + 32 * q, g);
      const __m256i size = _mm256_abs_epi8(value);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const __m256i signed_x = _mm256_sign_epi8(Q > 1 ? input[r] : _mm256_set1_epi32(x[g * R + r]), value);
        const __m256i products = _mm256_madd_epi16(_mm256_maddubs_epi16(size, signed_x), ones);
        dot[q][r] = g ? _mm256_add_epi32(dot[q][r], products) : products;
        keep_order(dot[q][r]);
      }
    }
  }
}

// Products of a block and Q quarters, less their zero point.
template <class F, int R, int Q>
inline __attribute__((always_inline)) void block_dots(const uint8_t* block, int quarter, const int32_t* x, __m256i (*dot)[R]) {
  const __m256i ones = _mm256_set1_epi16(1);
  const uint8_t* quants = block + F::kQuantsOffset + 32 * quarter;
  if constexpr (F::kBits == 8 || F::kIsCoded) {
    signed_dots<F, R, Q>(quants, x, dot);
  } else {
    __m256i sum[Q][R], fifths[Q];
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) {
      fifths[q] = _mm256_setzero_si256();
      if (F::kBits == 5) {
        fifths[q] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block + F::kHighOffset + 32 * (quarter + q)));
      }
    }
    constexpr bool kTwoSums = F::kBits == 5;
    two_groups<F, R, Q, 0, true>(quants, fifths, x, sum);
    two_groups<F, R, Q, 2, false>(quants, fifths, x, sum);
    if (kTwoSums) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        for (int q = 0; q < Q; ++q) dot[q][r] = _mm256_madd_epi16(sum[q][r], ones);
      }
    }
    two_groups<F, R, Q, 4, kTwoSums>(quants, fifths, x, sum);
    two_groups<F, R, Q, 6, false>(quants, fifths, x, sum);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) {
        const __m256i last = _mm256_madd_epi16(sum[q][r], ones);
        dot[q][r] = kTwoSums ? _mm256_add_epi32(dot[q][r], last) : last;
      }
    }
    if (F::kHasZero) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const __m256i zero = _mm256_set1_epi32(x[10 * R + r] << F::kZeroShift);
#pragma GCC unroll 4
        for (int q = 0; q < Q; ++q) dot[q][r] = _mm256_sub_epi32(dot[q][r], zero);
      }
    }
  }
}

template <class F>
inline __attribute__((always_inline)) __m256 load_numbers(const uint8_t* from, __m256 factor) {
  const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  const __m256 value = F::kIsBfloat ? _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16))
                                    : _mm256_cvtph_ps(halves);
  return _mm256_mul_ps(value, factor);
}

template <class F, int R>
void dense_tile(const PanelArgs& a) {
  // As many vectors of columns at a time as their sums fit into registers; of few rows all, whose sums wait for themselves.
  constexpr int vectors = R <= 2 ? 4 : R <= 6 ? 2 : 1;
  const __m256 on_all = _mm256_set1_ps(a.factor);
  for (int first = 0; first < kQuantisedColumns; first += 8 * vectors) {
    __m256 sum[R][vectors];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < vectors; ++v) sum[r][v] = _mm256_loadu_ps(a.start + r * a.ld_start + first + 8 * v);
    }
    const int32_t* x = a.x;
    const uint8_t* from = a.panel + 2 * first;
    for (int64_t k = 0; k < a.blocks * kBlockInputs; ++k, x += R, from += 64) {
      __builtin_prefetch(from + kAhead);
      __m256 number[vectors];
      for (int v = 0; v < vectors; ++v) number[v] = load_numbers<F>(from + 16 * v, on_all);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const __m256 input = broadcast_float(x + r);
        for (int v = 0; v < vectors; ++v) sum[r][v] = _mm256_fmadd_ps(input, number[v], sum[r][v]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < vectors; ++v) _mm256_storeu_ps(a.out + r * a.ld_out + first + 8 * v, sum[r][v]);
    }
  }
}

// The sums of one row and eight columns go on by one product of blocks.
inline __attribute__((always_inline)) void add_block(float* sum, __m256i dot, __m256 scale, const int32_t* d) {
  const __m256 factor = _mm256_mul_ps(scale, broadcast_float(d));
  _mm256_store_ps(sum, _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), factor, _mm256_load_ps(sum)));
}

// A block is added to sum[quarter][row] of Q quarters.
template <class F, int R, int Q>
inline __attribute__((always_inline)) void add_quarters(const uint8_t* head, const uint8_t* at, int quarter, const int32_t* inputs,
                                                        float (*sum)[R][8]) {
  const int32_t* x = read_again(inputs);
  __m256i dot[Q][R];
  block_dots<F, R, Q>(at, quarter, x, dot);
#pragma GCC unroll 4
  for (int q = 0; q < Q; ++q) {
    const int column = 8 * (quarter + q);
    __m256 scale = load_halves(head + 2 * column), minimum = _mm256_setzero_ps();
    if (F::kHasFactors) scale = _mm256_mul_ps(scale, load_bytes(at + column));
    if (F::kHasMinimum) minimum = load_halves(head + kScaleBytes + 2 * column);
    if (F::kHasMinimum && F::kHasFactors) minimum = _mm256_mul_ps(minimum, load_bytes(at + 32 + column));
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      float* to = sum[quarter + q][r];
      const __m256 factor = _mm256_mul_ps(scale, broadcast_float(x + 8 * R + r));
      __m256 total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[q][r]), factor, _mm256_load_ps(to));
      if (F::kHasMinimum) total = _mm256_fmadd_ps(minimum, broadcast_float(x + 9 * R + r), total);
      _mm256_store_ps(to, total);
    }
  }
}

// The same of one quarter, where halves have scales of their own.
template <class F, int R>
inline __attribute__((always_inline)) void add_halves(const uint8_t* head, const uint8_t* at, int quarter, const int32_t* inputs,
                                                      float (*sum)[R][8]) {
  const int32_t* x = read_again(inputs);
  const __m256 scale = load_halves(head + 16 * quarter);
  const uint8_t* factors = at + 8 * quarter;
  const __m256 early = _mm256_mul_ps(scale, load_signed_bytes(factors));
  __m256i dot[R];
  half_dots<F, R, 0>(at, quarter, x, dot);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) add_block(sum[quarter][r], dot[r], early, x + 8 * R + r);
  half_dots<F, R, 1>(at, quarter, x, dot);
  const __m256 late = _mm256_mul_ps(scale, load_signed_bytes(factors + 32));
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) add_block(sum[quarter][r], dot[r], late, x + 8 * R + r);
}

template <class F, int R>
void panel_tile(const PanelArgs& a) {
  if constexpr (F::kIsDense) return dense_tile<F, R>(a);
  constexpr int quarters = quarters_at_once<F, R>();
  // The sums stay in memory, which costs a load and a store a block: registers hold what is summed within one.
  alignas(32) float sum[4][R][8];
  for (int r = 0; r < R; ++r) {
    for (int q = 0; q < 4; ++q) _mm256_store_ps(sum[q][r], _mm256_loadu_ps(a.start + r * a.ld_start + 8 * q));
  }
  const int32_t* inputs = a.x;
  const uint8_t *head = a.panel, *at = a.panel;
  for (int64_t block = 0; block < a.blocks; ++block, inputs += kInputWords * R, at += F::kBlockBytes) {
    if (block % F::kRecordBlocks == 0) {
      head = at;
      at += F::kHeadBytes;
      __builtin_prefetch(at + kAhead + F::kBlockBytes);
    }
    prefetch_block<F>(at + kAhead);
#pragma GCC unroll 1
    for (int q = 0; q < 4; q += quarters) {
      if constexpr (F::kHasHalves) {
        add_halves<F, R>(head, at, q, inputs, sum);
      } else {
        add_quarters<F, R, quarters>(head, at, q, inputs, sum);
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int q = 0; q < 4; ++q) _mm256_storeu_ps(a.out + r * a.ld_out + 8 * q, _mm256_load_ps(sum[q][r]));
  }
}

constexpr PanelKernels kKernels{"avx2", kRows, {BIREME_FORMATS(BIREME_EIGHT_TILES)}};

}  // namespace

const PanelKernels* avx2_panel_kernels() {
  static const bool here =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  return here ? &kKernels : nullptr;
}

}  // namespace bireme
#else
namespace bireme {
const PanelKernels* avx2_panel_kernels() { return nullptr; }
}  // namespace bireme
#endif
