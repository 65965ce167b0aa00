#include "kernels/quantised/quantised.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "kernels/device/scratch.h"
#include "kernels/device/thread_pool.h"
#include "kernels/device/interleave.h"
#include "kernels/device/tile_fma.h"
#include "kernels/linear/panel_edge.h"
#include "kernels/quantised/half.h"
#include "kernels/quantised/panel_formats.h"
#include "kernels/quantised/round_block.h"

namespace bireme {
namespace {

// Of a panel: what comes from the cache for every row tile after the first. 48 blocks of Q4_1.
constexpr int64_t kDepthBytes = 48 * 640;
constexpr int64_t kGroupPanels = 4;
constexpr int64_t kGroupTiles = 8;
// With this many row tiles or fewer the op is bound by reading weights, and a task is a run of whole panels.
constexpr int64_t kStreamTiles = 4;
constexpr int64_t kStreamGrainBytes = 16 * 1024;
constexpr int64_t kQuantiseGrain = 2304;  // floats: a microsecond

int64_t num_panels(int64_t rows) { return (rows + kQuantisedColumns - 1) / kQuantisedColumns; }

// 32 inputs -> words[i * stride], i < kInputWords.
void quantise_block(const float* x, float factor, int32_t* words, int64_t stride) {
  const int32_t most = greatest_magnitude(x);
  float amax;
  std::memcpy(&amax, &most, sizeof amax);
  RoundedBlock block{};
  float d = 0.0f;
  if (most >= 0x7f800000) {
    d = std::numeric_limits<float>::quiet_NaN();
  } else if (amax >= 0x1p-100f) {
    d = amax / 127.0f * factor;
    block = round_block(x, 127.0f / amax);
  }
  const float s = d * static_cast<float>(block.sum);
  for (int g = 0; g < 8; ++g) words[g * stride] = block.words[g];
  std::memcpy(words + 8 * stride, &d, sizeof d);
  std::memcpy(words + 9 * stride, &s, sizeof s);
  words[10 * stride] = block.sum;
  words[11 * stride] = block.first_sum;
}

// x -> [row tile][block][kInputWords][rows of the tile].
void quantise(const float* x, int64_t in_features, float factor, const EvenSplit& tiles, int32_t* out) {
  const int64_t blocks = in_features / kBlockInputs;
  const int64_t grain = std::max<int64_t>(1, kQuantiseGrain / (kBlockInputs * std::max<int64_t>(1, tiles.size(0))));
  parallel_for(tiles.parts * blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t tile = i / blocks, block = i % blocks, rows = tiles.size(tile);
      const float* from = x + tiles.begin(tile) * in_features + block * kBlockInputs;
      int32_t* to = out + (tiles.begin(tile) * blocks + block * rows) * kInputWords;
      for (int64_t r = 0; r < rows; ++r) quantise_block(from + r * in_features, factor, to + r, rows);
    }
  });
}

struct Product {
  const PanelKernels& kernels;
  const QuantisedPart& part;
  const int32_t* x;
  float factor;
  const float* bias;  // of the part's first column, as y
  float* y;
  int64_t blocks, panel_bytes, ld_y;
  EvenSplit tiles, depths;  // depths are of records

  // One depth block of one row tile times one panel, added to y.
  void panel_block(int64_t depth, int64_t tile, int64_t panel) const {
    const int64_t column = panel * kQuantisedColumns, columns = std::min(kQuantisedColumns, part.rows - column);
    const int64_t row = tiles.begin(tile), rows = tiles.size(tile);
    float* out = y + row * ld_y + column;
    PanelArgs args{};
    const PanelFormat& format = *part.format;
    const int64_t first_block = depths.begin(depth) * format.record_blocks;
    args.blocks = depths.size(depth) * format.record_blocks;
    args.x = x + (row * blocks + first_block * rows) * format.input_words();
    args.factor = factor;
    args.panel = part.panels + panel * panel_bytes + depths.begin(depth) * format.record_bytes();
    const PanelKernel kernel = kernels.kernels[format.index][rows - 1];
    over_panel<kQuantisedColumns, kMaxPanelRows>(
        out, ld_y, rows, columns, depth > 0, bias ? bias + column : nullptr,
        [&](const float* start, int64_t ld_start, float* to, int64_t ld_to) {
          args.start = start;
          args.ld_start = ld_start;
          args.out = to;
          args.ld_out = ld_to;
          kernel(args);
        });
  }

  void run() const {
    const int64_t panels = num_panels(part.rows);
    if (tiles.parts <= kStreamTiles) {
      const int64_t grain = std::max<int64_t>(1, kStreamGrainBytes / (panel_bytes * tiles.parts));
      parallel_for(panels, grain, [&](int64_t begin, int64_t end) {
        for (int64_t panel = begin; panel < end; ++panel) {
          for (int64_t depth = 0; depth < depths.parts; ++depth) {
            for (int64_t tile = 0; tile < tiles.parts; ++tile) panel_block(depth, tile, panel);
          }
        }
      });
      return;
    }
    const EvenSplit row_groups(tiles.parts, kGroupTiles), panel_groups(panels, kGroupPanels);
    parallel_for(row_groups.parts * panel_groups.parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t rg = task % row_groups.parts, pg = task / row_groups.parts;
        for (int64_t depth = 0; depth < depths.parts; ++depth) {
          for (int64_t panel = panel_groups.begin(pg); panel < panel_groups.begin(pg + 1); ++panel) {
            for (int64_t tile = row_groups.begin(rg); tile < row_groups.begin(rg + 1); ++tile) {
              panel_block(depth, tile, panel);
            }
          }
        }
      }
    });
  }
};

const PanelFormat* format_of(int64_t type) {
  for (const PanelFormat& format : kPanelFormats) {
    if (static_cast<int64_t>(format.type) == type) return &format;
  }
  return nullptr;
}

void expand_block(const PanelFormat& format, const uint8_t* head, const uint8_t* block, int64_t column, float factor, float* out) {
  if (format.bits == 16) {
    for (int k = 0; k < kBlockInputs; ++k) {
      const uint8_t* from = block + 64 * k + 2 * column;
      out[k] = (format.is_bfloat ? bfloat_to_float(from) : half_to_float(from)) * factor;
    }
    return;
  }
  float scale = half_to_float(head + 2 * column);
  float minimum = format.has_minimum ? half_to_float(head + 64 + 2 * column) : 0.0f;
  float late_scale = scale;  // of the last 16 inputs
  if (format.has_factors && format.has_minimum) {
    scale = late_scale *= block[column];
    minimum *= block[32 + column];
  } else if (format.has_factors) {
    scale *= static_cast<int8_t>(block[column]);
    late_scale *= static_cast<int8_t>(block[32 + column]);
  }
  const uint8_t* quants = block + format.quants_offset + 4 * column;
  for (int k = 0; k < kBlockInputs; ++k) {
    int quant = quants[(format.bits == 8 ? k / 4 : k / 8) * 128 + k % 4];
    if (format.bits != 8) quant = k % 8 < 4 ? quant & 15 : quant >> 4;
    if (format.bits == 5) quant += (quants[512 + k % 4] >> (k / 4) & 1) * 16;
    if (format.bits == 6) quant += (quants[512 + k / 16 * 128 + k % 4] >> (k / 4 % 4 * 2) & 3) * 16;
    if (format.is_coded) quant = kCodes[quant];
    const float value = (k < 16 ? scale : late_scale) * static_cast<float>(quant - format.zero_point);
    out[k] = (format.has_minimum ? value + minimum : value) * factor;
  }
}

void expand_row(const QuantisedPart& part, int64_t row, int64_t blocks, float factor, float* out) {
  const PanelFormat& format = *part.format;
  const uint8_t* head = part.panels + row / kQuantisedColumns * (blocks / format.record_blocks) * format.record_bytes();
  for (int64_t b = 0; b < blocks; ++b, out += kBlockInputs) {
    const int64_t place = b % format.record_blocks;
    expand_block(format, head, head + format.head_bytes + place * format.block_bytes, row % kQuantisedColumns, factor, out);
    if (place + 1 == format.record_blocks) head += format.record_bytes();
  }
}

}  // namespace

const PanelKernels& best_panel_kernels() {
  static const PanelKernels* const best = [] {
    for (const auto find : {avx512_panel_kernels, avx2_panel_kernels}) {
      if (const PanelKernels* kernels = find()) return kernels;
    }
    return portable_panel_kernels();
  }();
  return *best;
}

const char* read_quantised_weight(const uint8_t* data, int64_t bytes, QuantisedWeight* weight) {
  int64_t header[kQuantisedHeaderWords];
  int64_t at = sizeof header;
  if (bytes < at) return "is shorter than its header";
  std::memcpy(header, data, sizeof header);
  *weight = {header[1], 0, header[2], 1.0f, {}};
  std::memcpy(&weight->factor, &header[3], sizeof weight->factor);
  if (header[0] != kQuantisedMagic) return "has no header of a quantised weight";
  if (weight->in_features < 1 || weight->in_features % kBlockInputs || weight->in_features > (int64_t{1} << 31)) {
    return "needs a multiple of 32 inputs";
  }
  if (weight->num_parts < 1 || weight->num_parts > kQuantisedParts) return "needs from 1 to 6 parts";
  for (int64_t i = 0; i < weight->num_parts; ++i) {
    const PanelFormat* format = format_of(header[4 + 2 * i]);
    const int64_t rows = header[5 + 2 * i];
    if (format == nullptr) return "has a part of an unknown type";
    if (rows < 1 || rows > (int64_t{1} << 31)) return "has a part without rows";
    if (weight->in_features / kBlockInputs % format->record_blocks) return "needs a multiple of 256 inputs";
    const int64_t panel_bytes = weight->in_features / kBlockInputs / format->record_blocks * format->record_bytes();
    if (num_panels(rows) > (bytes - at) / panel_bytes) return "is shorter than its parts";
    weight->parts[i] = {format, rows, num_panels(rows) * panel_bytes, data + at};
    weight->out_features += rows;
    at += weight->parts[i].bytes;
  }
  return at == bytes ? nullptr : "is longer than its parts";
}

void quantised_linear_cpu(const float* x, int64_t rows, const QuantisedWeight& weight, const float* bias, float* y,
                          const PanelKernels& kernels) {
  if (rows == 0) return;
  thread_local Scratch quant_scratch, float_scratch;
  const int64_t blocks = weight.in_features / kBlockInputs;
  const EvenSplit tiles(rows, kernels.rows);
  const int32_t *quants = nullptr, *floats = nullptr;
  for (int64_t i = 0, column = 0; i < weight.num_parts; column += weight.parts[i++].rows) {
    const QuantisedPart& part = weight.parts[i];
    const bool is_dense = part.format->bits == 16;
    if (is_dense && floats == nullptr) {
      float* tiled = float_scratch.get(rows * weight.in_features);
      interleave(x, weight.in_features, tiles, tiled);
      floats = reinterpret_cast<const int32_t*>(tiled);
    } else if (!is_dense && quants == nullptr) {
      auto* rounded = reinterpret_cast<int32_t*>(quant_scratch.get(rows * blocks * kInputWords));
      quantise(x, weight.in_features, weight.factor, tiles, rounded);
      quants = rounded;
    }
    const int64_t records = blocks / part.format->record_blocks;
    const EvenSplit depths(records, std::max<int64_t>(1, kDepthBytes / part.format->record_bytes()));
    Product{kernels, part, is_dense ? floats : quants, weight.factor, bias ? bias + column : nullptr, y + column, blocks,
            records * part.format->record_bytes(), weight.out_features, tiles, depths}
        .run();
  }
}

void quantised_embedding_cpu(const QuantisedWeight& weight, const int64_t* ids, int64_t rows, float* out) {
  const int64_t width = weight.in_features;
  parallel_for(rows, 4, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      int64_t id = ids[t], part = 0;
      float* to = out + t * width;
      if (id < 0 || id >= weight.out_features) {
        std::memset(to, 0, width * sizeof(float));
        continue;
      }
      while (id >= weight.parts[part].rows) id -= weight.parts[part++].rows;
      expand_row(weight.parts[part], id, width / kBlockInputs, weight.factor, to);
    }
  });
}

}  // namespace bireme
