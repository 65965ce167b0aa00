// Products of a tile of quantised rows and one panel, for several instruction sets: no Paddle headers.
//
// The files panel_*.cc are compiled for one instruction set each. Nothing in them or in this header may be an inline function
// with a name for the linker: it could take the one that the processor does not know.
#pragma once
#include <cstdint>

namespace bireme {

constexpr int64_t kBlockInputs = 32;
constexpr int64_t kQuantisedColumns = 32;
// Of one row and block: 8 words of quants, d, s, the sum of the quants, and of the first 16 of them.
constexpr int64_t kInputWords = 12;
constexpr int kMaxPanelRows = 8;

// ggml's numbers.
enum class BlockType : int32_t { kQ4_0 = 2, kQ4_1 = 3, kQ5_0 = 6, kQ5_1 = 7, kQ8_0 = 8, kQ4_K = 12, kQ5_K = 13, kQ6_K = 14,
                                 kIQ4_NL = 20, kF16 = 1, kBF16 = 30 };

struct PanelFormat {
  BlockType type;
  int32_t index;         // in the tables of kernels
  int32_t bits;          // of a quant: 4, 5, 6 or 8; 16: numbers
  int32_t zero_point;    // a power of two or 0
  int32_t has_minimum;
  int32_t has_factors;   // whole numbers on scale and minimum
  int32_t is_coded;      // a quant stands for a number of a table
  int32_t is_bfloat;
  int32_t head_bytes;    // of a record: scales and minima
  int32_t record_blocks;  // blocks of 32 inputs of a record
  int32_t block_bytes;
  int32_t quants_offset;  // of a block

  int64_t record_bytes() const { return head_bytes + record_blocks * block_bytes; }
  int64_t input_words() const { return bits == 16 ? kBlockInputs : kInputWords; }
};

constexpr int kNumPanelFormats = 11;
extern const PanelFormat kPanelFormats[kNumPanelFormats];

struct PanelArgs {
  int64_t blocks;    // a multiple of the format's record_blocks
  const int32_t* x;  // [block][input_words][rows of the tile]; of numbers the floats themselves
  float factor;      // on each number; others have it in x
  const uint8_t* panel;
  const float* start;  // what the sums start from: start[row * ld_start + column]
  int64_t ld_start;
  float* out;  // out[row * ld_out + column], 32 columns; may be start
  int64_t ld_out;
};

using PanelKernel = void (*)(const PanelArgs&);

struct PanelKernels {
  const char* name;
  int rows;                                                 // of the largest tile
  PanelKernel kernels[kNumPanelFormats][kMaxPanelRows];     // [format][rows - 1]
};

// Null where the library was built for another architecture, or the processor lacks the instructions.
const PanelKernels* avx512_panel_kernels();
const PanelKernels* avx2_panel_kernels();
const PanelKernels* portable_panel_kernels();

const PanelKernels& best_panel_kernels();

}  // namespace bireme
