// Token masks made by a grammar library, beside the forward. Called from Python through ctypes: no tensors.
#pragma once
#include <cstdint>

namespace bireme {

// Where an answer stands in its grammar: `gpu_ops.mask_making.MaskMaker`. The library's functions return 0 where a matcher can go on.
struct MaskMaker {
  int32_t (*consume)(void* matcher, uint32_t token);
  int32_t (*fill)(void* matcher, int32_t* words, uint64_t bytes);
  void* matcher;
  const int32_t* end_words;  // the mask where nothing but an end may come
  int64_t token;             // that was taken since the last mask; -1: none
  int64_t has_failed;        // the matcher cannot go on
};

// The mask of a row; its first word is written, too.
struct MaskOfRow {
  MaskMaker* maker;
  int32_t* mask;
};

}  // namespace bireme
