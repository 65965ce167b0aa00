// What the kernels of registers wider than a number share, whatever their width.
#pragma once
#include "kernels/quantised/panel_formats.h"

namespace bireme {
namespace {

// Bytes behind what is read that are brought nearer.
constexpr int kAhead = 4096;

// The same address, of which the compiler does not know that: what is read from there is read again by the instruction that needs it,
// not kept in memory for want of registers.
inline __attribute__((always_inline)) const int32_t* read_again(const int32_t* x) {
  asm volatile("" : "+r"(x));
  return x;
}

// Kernels of a format for tiles of one row to eight.
#define BIREME_EIGHT_TILES(F)                                                                                       \
  {                                                                                                                 \
    panel_tile<F, 1>, panel_tile<F, 2>, panel_tile<F, 3>, panel_tile<F, 4>, panel_tile<F, 5>, panel_tile<F, 6>,      \
        panel_tile<F, 7>, panel_tile<F, 8>                                                                           \
  }

}  // namespace
}  // namespace bireme
