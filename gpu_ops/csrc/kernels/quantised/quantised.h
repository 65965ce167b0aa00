// y = x W^T with W as blocks of few bits, the way model files store them: no Paddle headers.
//
// A quantised weight is one array of bytes: a header of 16 int64 (kQuantisedMagic, in_features, number of parts, factor as the
// bits of a float32, then type and rows of each part), and for each part its panels of 32 output columns. A panel is one record
// a block of 32 inputs, of formats with factors one for 8 of them:
//   32 scales, float16; with a minimum 32 minima, float16;
//   then of each 32 inputs, of formats with factors, 32 bytes on the scales and 32 on the minima, or 32 signed ones on the scale of
//   the first 16 inputs and 32 on that of the others;
//   then their quants, 4 inputs of a column side by side:
//   4 bits: [input / 8][column][input % 4], the low half of a byte has input % 8 < 4, the high half the others;
//   5 bits: four of them like that, then a word a column: bit input / 4 of its byte input % 4 is the fifth;
//   6 bits: four of them like that, then two times a word a column, for the first and last 16 inputs: bits 2 * (input / 4 % 4) and
//   the next of its byte input % 4 are the fifth and sixth;
//   8 bits: [input / 4][column][input % 4], offset by 128.
// IQ4_NL's 4 bits stand for numbers of a table. Of F16 and BF16 a record is 32 inputs of [input][column], without scales.
// Columns beyond the rows of a part are zero. Element (n, k) is
// factor * (scale * (quant - zero point) + minimum), or factor * number.
#pragma once
#include <cstdint>

#include "kernels/quantised/panel_kernels.h"

namespace bireme {

constexpr int64_t kQuantisedHeaderWords = 16;
constexpr int64_t kQuantisedMagic = 0x31746e6175716a62;
constexpr int64_t kQuantisedParts = 6;

struct QuantisedPart {
  const PanelFormat* format;
  int64_t rows, bytes;
  const uint8_t* panels;
};

struct QuantisedWeight {
  int64_t in_features, out_features, num_parts;
  float factor;
  QuantisedPart parts[kQuantisedParts];
};

// Reads the header of `bytes` bytes; null, or what is wrong with them.
const char* read_quantised_weight(const uint8_t* data, int64_t bytes, QuantisedWeight* weight);

// x [rows, in_features], bias [out_features] or null -> y [rows, out_features]. Blocks of 32 inputs of a row become 8 bits:
// amax = max |x|, d = amax / 127, q = round(x * (127 / amax)) to nearest even; all 0 below 2^-100, and d NaN where an input is
// not finite. Then d *= factor and s = d * (sum of q). With i the exact sum of (quant - zero point) * q, element (t, n) is the
// chain sum = fma(i, scale * d, sum), with a minimum also sum = fma(minimum, s, sum), over ascending blocks (of 16 inputs where these have scales of their own), started from the
// bias or 0: a function of row t alone. Of F16 and BF16 it is linear_cpu's chain over the inputs as they are. `kernels`: one of those of panel_kernels.h; all give the same bits.
void quantised_linear_cpu(const float* x, int64_t rows, const QuantisedWeight& weight, const float* bias, float* y,
                          const PanelKernels& kernels = best_panel_kernels());

// Row ids[t] of the weight, expanded -> out [rows, in_features]; zeros where there is none.
void quantised_embedding_cpu(const QuantisedWeight& weight, const int64_t* ids, int64_t rows, float* out);

}  // namespace bireme
