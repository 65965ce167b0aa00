// Which part of which row's context a block of decode attention computes. Every block works it out for itself: how long the
// contexts are is known on the device alone.
#pragma once
#include "kernels/attention/cuda/decode_tile.cuh"

namespace bireme {

constexpr int kWarps = 4;  // of a block: they take a part's tiles in turn

// Rows of one slot that a block computes together, and the context they see.
struct Entry {
  int slot, row, num_rows, last;  // last: position of the last row; slot is -1 where there is nothing to compute
};

// What a block computes: part number `part` of the `parts` of an entry, each of `keys` positions.
struct Share {
  Entry entry;
  int index, part, parts, keys;  // index: of the entry, names its counter of arrivals
};

// Row `i` where every row is single; with cu_seqlens_q the only row of slot `i`.
__device__ inline Entry single_row(const Launch& launch, int i) {
  const CudaRows& s = launch.rows;
  Entry entry{-1, i, 1, -1};
  if (launch.attention.cu_seqlens_q) {
    entry.row = launch.attention.cu_seqlens_q[i];
    if (launch.attention.cu_seqlens_q[i + 1] != entry.row + 1 || entry.row >= s.rows) return entry;
  }
  entry.slot = s.batch_ids[entry.row];
  entry.last = s.positions[entry.row];
  const int limit = launch.attention.cos_sin ? min(launch.attention.max_positions, launch.longest) : launch.longest;
  if (entry.slot >= s.slots || entry.last < 0 || entry.last >= limit) entry.slot = -1;
  return entry;
}

// The single rows of a launch, in rounds of a warp; those of the first two rounds are kept.
class SingleRows {
 public:
  __device__ explicit SingleRows(const Launch& launch) : launch_(launch), first_(row_of(0)), second_(row_of(kWarp)) {
    length_ = launch.min_part;
    if (launch.attention.batch_invariant) return;
    // As short as it may be with at most `most_parts` parts of all contexts together.
    const int share = (total([](const Entry& entry) { return entry.last + 1; }) + launch.most_parts - 1) / launch.most_parts;
    length_ = max(length_, (share + launch.step - 1) / launch.step * launch.step);
    while (total([&](const Entry& entry) { return parts_of(entry); }) > launch.most_parts) {
      length_ += max(length_ / 8 / launch.step, 1) * launch.step;
    }
  }

  // Share number `wanted` of all parts, counted row by row; its slot is -1 beyond the last.
  __device__ Share share(int wanted) const {
    if (launch_.entries == 1) {
      Share only{first_, 0, wanted, first_.last / length_ + 1, length_};
      if (wanted >= only.parts) only.entry.slot = -1;
      return only;
    }
    for (int i = 0; i < launch_.entries; i += kWarp) {
      const Entry entry = of_lane(i);
      const int parts = parts_of(entry), up_to = warp_prefix(parts);
      const unsigned hit = __ballot_sync(kAllLanes, wanted < up_to);
      if (hit) {
        const int source = __ffs(hit) - 1;
        const auto of_source = [&](int value) { return __shfl_sync(kAllLanes, value, source); };
        Share share{{of_source(entry.slot), of_source(entry.row), 1, of_source(entry.last)}, i + source,
                    wanted - of_source(up_to - parts), of_source(parts), length_};
        if (!launch_.attention.batch_invariant) {
          // Parts of a row are equally long.
          share.keys = (share.entry.last / share.parts + launch_.step) / launch_.step * launch_.step;
          share.parts = share.entry.last / share.keys + 1;
          if (share.part >= share.parts) share.entry.slot = -1;
        }
        return share;
      }
      wanted -= __shfl_sync(kAllLanes, up_to, kWarp - 1);
    }
    return {{-1, 0, 0, -1}, 0, 0, 0, length_};
  }

 private:
  __device__ int parts_of(const Entry& entry) const { return entry.slot < 0 ? 0 : entry.last / length_ + 1; }
  template <typename Of>
  __device__ int total(const Of& of) const {
    int sum = 0;
    for (int i = 0; i < launch_.entries; i += kWarp) sum += of(of_lane(i));
    if (launch_.entries > 1) {
      for (int offset = kWarp / 2; offset; offset /= 2) sum += __shfl_xor_sync(kAllLanes, sum, offset);
    }
    return sum;
  }
  __device__ Entry of_lane(int start) const { return start == 0 ? first_ : start == kWarp ? second_ : row_of(start); }
  __device__ Entry row_of(int start) const {
    // A lone row is known to all lanes.
    const int i = launch_.entries == 1 ? 0 : start + threadIdx.x % kWarp;
    Entry entry{-1, 0, 1, -1};
    if (i < launch_.entries && !launch_.tiled) entry = single_row(launch_, i);
    if (entry.slot < 0) entry.last = -1;
    return entry;
  }

  const Launch& launch_;
  Entry first_, second_;
  int length_;  // positions of a part, a multiple of launch.step
};

// With batch_invariant, part `part` of tile number `index` of the slots' rows.
__device__ inline Share share_of_tile(const Launch& launch, int index, int part) {
  const CudaRows& s = launch.rows;
  const SlotTile tile = SlotTile::find(launch, index, launch.entry_rows, 1);
  Share share{{tile.slot, tile.row, tile.num_rows, -1}, index, part, 0, launch.min_part};
  if (tile.slot < 0) return share;
  share.entry.slot = s.batch_ids[tile.row];
  share.entry.last = s.positions[tile.row + tile.num_rows - 1];
  if (share.entry.slot >= s.slots || share.entry.last < 0 || share.entry.last >= launch.longest) share.entry.slot = -1;
  share.parts = share.entry.last / share.keys + 1;
  if (part >= share.parts) share.entry.slot = -1;
  return share;
}

}  // namespace bireme
