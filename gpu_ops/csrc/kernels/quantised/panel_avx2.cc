// AVX2 with FMA and F16C: 8 columns a register. Products of 4-bit quants are summed in 16 bits: 16 of them are at most
// 16 * 15 * 127, which fits. Two products of 8-bit quants fit as |w| * (x with w's sign): at most 2 * 128 * 127.
#include "kernels/device/intrinsics.h"
#include "kernels/quantised/panel_formats.h"

#if defined(__x86_64__)

namespace bireme {
namespace {

constexpr int kAhead = 4096;
constexpr int kRows = 4;

inline __attribute__((always_inline)) __m256 broadcast_float(const int32_t* from) {
  return _mm256_castsi256_ps(_mm256_set1_epi32(*from));
}

inline __attribute__((always_inline)) __m256 load_halves(const uint8_t* from) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

template <class F, int R>
inline __attribute__((always_inline)) void quarter_dots(const uint8_t* quants, const int32_t* x, __m256i dot[R]) {
  const __m256i ones = _mm256_set1_epi16(1);
  if (F::kBits == 4) {
    const __m256i low = _mm256_set1_epi8(15);
    __m256i short_dot[R];
#pragma GCC unroll 4
    for (int g = 0; g < 8; g += 2) {
      const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(quants + g / 2 * kGroupStride));
      const __m256i first = _mm256_and_si256(both, low);
      const __m256i second = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const __m256i products = _mm256_add_epi16(_mm256_maddubs_epi16(first, _mm256_set1_epi32(x[g * R + r])),
                                                  _mm256_maddubs_epi16(second, _mm256_set1_epi32(x[(g + 1) * R + r])));
        short_dot[r] = g == 0 ? products : _mm256_add_epi16(short_dot[r], products);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      dot[r] = _mm256_madd_epi16(short_dot[r], ones);
      if (F::kHasZero) dot[r] = _mm256_sub_epi32(dot[r], _mm256_set1_epi32(x[10 * R + r] << F::kZeroShift));
    }
  } else {
    const __m256i offset = _mm256_set1_epi8(-128);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) dot[r] = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int g = 0; g < 8; ++g) {
      const __m256i all = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(quants + g * kGroupStride));
      const __m256i value = _mm256_xor_si256(all, offset);
      const __m256i size = _mm256_abs_epi8(value);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const __m256i signed_x = _mm256_sign_epi8(_mm256_set1_epi32(x[g * R + r]), value);
        dot[r] = _mm256_add_epi32(dot[r], _mm256_madd_epi16(_mm256_maddubs_epi16(size, signed_x), ones));
      }
    }
  }
}

template <class F, int R>
void panel_tile(const PanelArgs& a) {
  __m256 sum[R][4];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    for (int q = 0; q < 4; ++q) sum[r][q] = _mm256_loadu_ps(a.start + r * a.ld_start + 8 * q);
  }
  const int32_t* x = a.x;
  const uint8_t* record = a.panel;
  for (int64_t block = 0; block < a.blocks; ++block, x += kInputWords * R, record += record_bytes<F>()) {
    prefetch_record<F>(record + kAhead);
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
      __m256i dot[R];
      quarter_dots<F, R>(record + quants_offset<F>() + 32 * q, x, dot);
      const __m256 scale = load_halves(record + 16 * q);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const __m256 factor = _mm256_mul_ps(scale, broadcast_float(x + 8 * R + r));
        sum[r][q] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[r]), factor, sum[r][q]);
      }
      if (F::kHasMinimum) {
        const __m256 minimum = load_halves(record + kScaleBytes + 16 * q);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) sum[r][q] = _mm256_fmadd_ps(minimum, broadcast_float(x + 9 * R + r), sum[r][q]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    for (int q = 0; q < 4; ++q) _mm256_storeu_ps(a.out + r * a.ld_out + 8 * q, sum[r][q]);
  }
}

#define BIREME_TILES(F) {panel_tile<F, 1>, panel_tile<F, 2>, panel_tile<F, 3>, panel_tile<F, 4>}
constexpr PanelKernels kKernels{"avx2", kRows, {BIREME_TILES(Q4_0), BIREME_TILES(Q4_1), BIREME_TILES(Q8_0)}};

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
