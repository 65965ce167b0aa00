// Token masks made by a grammar library, beside the forward. Called from Python through ctypes: no tensors.
#pragma once
#include <cstdint>

namespace bireme {

// One row's mask, as `gpu_ops.mask_making` writes it. The library's functions return 0 where a matcher can go on.
struct MaskRow {
  int32_t (*consume)(void* matcher, uint32_t token);
  int32_t (*fill)(void* matcher, int32_t* words, uint64_t bytes);
  void* matcher;
  int64_t token;             // that was taken since the last mask; -1: none
  const int32_t* end_words;  // the mask where nothing but an end may come
  int32_t* mask;             // `mask_words` of them, the first is 1 then
  int64_t failed;            // set where the matcher cannot go on
};

}  // namespace bireme
