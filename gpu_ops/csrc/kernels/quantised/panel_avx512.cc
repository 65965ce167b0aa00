// AVX-512 with VNNI: 16 columns a register, four products a lane.
#include "kernels/device/intrinsics.h"
#include "kernels/quantised/panel_registers.h"

#if defined(__x86_64__)

namespace bireme {
namespace {

inline __attribute__((always_inline)) __m512 broadcast_float(const int32_t* from) {
  return _mm512_castsi512_ps(_mm512_set1_epi32(*from));
}

inline __attribute__((always_inline)) __m512 load_halves(const uint8_t* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

inline __attribute__((always_inline)) __m512 load_bytes(const uint8_t* from) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}

// The fifth bits of group g, where they belong in a quant.
template <int G>
inline __attribute__((always_inline)) __m512i fifth_bits(__m512i words) {
  const __m512i moved = G < 4 ? _mm512_slli_epi32(words, G < 4 ? 4 - G : 0) : _mm512_srli_epi32(words, G < 4 ? 0 : G - 4);
  return _mm512_and_si512(moved, _mm512_set1_epi8(16));
}

// The fifth and sixth bits of group g.
template <int G>
inline __attribute__((always_inline)) __m512i two_bits(__m512i words) {
  constexpr int place = G % 4;
  const __m512i moved = place < 2 ? _mm512_slli_epi32(words, place < 2 ? 4 - 2 * place : 0)
                                  : _mm512_srli_epi32(words, place < 2 ? 0 : 2 * place - 4);
  return _mm512_and_si512(moved, _mm512_set1_epi8(48));
}

inline __attribute__((always_inline)) __m512 load_signed_bytes(const uint8_t* from) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}

template <class F, int R, int G>
inline __attribute__((always_inline)) void two_groups(const uint8_t* quants, __m512i fifths, const int32_t* x, __m512i* dot) {
  const __m512i low = _mm512_set1_epi8(15);
  const __m512i both = _mm512_loadu_si512(quants + G / 2 * kGroupStride);
  __m512i first = _mm512_and_si512(both, low);
  __m512i second = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
  if (F::kIsCoded) {
    const __m512i codes = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(kCodes)));
    first = _mm512_shuffle_epi8(codes, first);
    second = _mm512_shuffle_epi8(codes, second);
  }
  if (F::kBits == 5) {
    first = _mm512_or_si512(first, fifth_bits<G>(fifths));
    second = _mm512_or_si512(second, fifth_bits<G + 1>(fifths));
  }
  if (F::kBits == 6) {
    first = _mm512_or_si512(first, two_bits<G>(fifths));
    second = _mm512_or_si512(second, two_bits<G + 1>(fifths));
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) dot[r] = _mm512_dpbusd_epi32(dot[r], first, _mm512_set1_epi32(x[G * R + r]));
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) dot[r] = _mm512_dpbusd_epi32(dot[r], second, _mm512_set1_epi32(x[(G + 1) * R + r]));
}

template <class F>
inline __attribute__((always_inline)) __m512 load_numbers(const uint8_t* from, __m512 factor) {
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  const __m512 value = F::kIsBfloat ? _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))
                                    : _mm512_cvtph_ps(halves);
  return _mm512_mul_ps(value, factor);
}

template <class F, int R>
void dense_tile(const PanelArgs& a) {
  const __m512 on_all = _mm512_set1_ps(a.factor);
  __m512 sum[R][2];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    for (int h = 0; h < 2; ++h) sum[r][h] = _mm512_loadu_ps(a.start + r * a.ld_start + 16 * h);
  }
  const int32_t* x = a.x;
  const uint8_t* from = a.panel;
  for (int64_t k = 0; k < a.blocks * kBlockInputs; ++k, x += R, from += 64) {
    __builtin_prefetch(from + kAhead);
    const __m512 first = load_numbers<F>(from, on_all), second = load_numbers<F>(from + 32, on_all);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const __m512 input = broadcast_float(x + r);
      sum[r][0] = _mm512_fmadd_ps(input, first, sum[r][0]);
      sum[r][1] = _mm512_fmadd_ps(input, second, sum[r][1]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    for (int h = 0; h < 2; ++h) _mm512_storeu_ps(a.out + r * a.ld_out + 16 * h, sum[r][h]);
  }
}

template <class F, int R>
void panel_tile(const PanelArgs& a) {
  if constexpr (F::kIsDense) return dense_tile<F, R>(a);
  __m512 sum[R][2];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    for (int h = 0; h < 2; ++h) sum[r][h] = _mm512_loadu_ps(a.start + r * a.ld_start + 16 * h);
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
    const uint8_t* quants = at + F::kQuantsOffset;
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const int32_t* x = read_again(inputs);
      __m512i dot[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        dot[r] = _mm512_setzero_si512();
        if (F::kHasZero) dot[r] = _mm512_sub_epi32(dot[r], _mm512_set1_epi32(x[(F::kHasHalves ? 11 : 10) * R + r] << F::kZeroShift));
      }
      __m512 scale = load_halves(head + 32 * h), minimum = _mm512_setzero_ps();
      const __m512 whole_scale = scale;
      if (F::kBits == 8) {
#pragma GCC unroll 8
        for (int g = 0; g < 8; ++g) {
          const __m512i all = _mm512_loadu_si512(quants + g * kGroupStride + 64 * h);
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) dot[r] = _mm512_dpbusd_epi32(dot[r], all, _mm512_set1_epi32(x[g * R + r]));
        }
      } else {
        __m512i fifths = _mm512_setzero_si512();
        if (F::kBits > 4) fifths = _mm512_loadu_si512(at + F::kHighOffset + 64 * h);
        two_groups<F, R, 0>(quants + 64 * h, fifths, x, dot);
        two_groups<F, R, 2>(quants + 64 * h, fifths, x, dot);
        if (F::kHasHalves) {
          fifths = _mm512_loadu_si512(at + F::kHighOffset + kGroupStride + 64 * h);
          scale = _mm512_mul_ps(whole_scale, load_signed_bytes(at + 16 * h));
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) {
            const __m512 factor = _mm512_mul_ps(scale, broadcast_float(x + 8 * R + r));
            sum[r][h] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[r]), factor, sum[r][h]);
            const int32_t quants_left = x[10 * R + r] - x[11 * R + r];
            dot[r] = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_set1_epi32(quants_left << F::kZeroShift));
          }
          scale = _mm512_mul_ps(whole_scale, load_signed_bytes(at + 32 + 16 * h));
        }
        two_groups<F, R, 4>(quants + 64 * h, fifths, x, dot);
        two_groups<F, R, 6>(quants + 64 * h, fifths, x, dot);
      }
      if (F::kHasMinimum) minimum = load_halves(head + kScaleBytes + 32 * h);
      if (F::kHasFactors && !F::kHasHalves) {
        scale = _mm512_mul_ps(scale, load_bytes(at + 16 * h));
        minimum = _mm512_mul_ps(minimum, load_bytes(at + 32 + 16 * h));
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const __m512 factor = _mm512_mul_ps(scale, broadcast_float(x + 8 * R + r));
        sum[r][h] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[r]), factor, sum[r][h]);
        if (F::kHasMinimum) sum[r][h] = _mm512_fmadd_ps(minimum, broadcast_float(x + 9 * R + r), sum[r][h]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    for (int h = 0; h < 2; ++h) _mm512_storeu_ps(a.out + r * a.ld_out + 16 * h, sum[r][h]);
  }
}

constexpr PanelKernels kKernels{"avx512", 8, {BIREME_FORMATS(BIREME_EIGHT_TILES)}};

}  // namespace

const PanelKernels* avx512_panel_kernels() {
  static const bool here = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
  return here ? &kKernels : nullptr;
}

}  // namespace bireme
#else
namespace bireme {
const PanelKernels* avx512_panel_kernels() { return nullptr; }
}  // namespace bireme
#endif
