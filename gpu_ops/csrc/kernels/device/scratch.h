// Working memory that an op keeps between calls.
#pragma once
#include <cstdlib>
#include <new>

namespace bireme {

// A 64-byte aligned array of floats that only grows; the contents are lost when it does. Meant to be thread_local.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  ~Scratch() { std::free(data_); }

  float* get(size_t count) {
    if (count > capacity_) {
      std::free(data_);
      capacity_ = 0;
      const size_t rounded = (count + 15) / 16 * 16;
      data_ = static_cast<float*>(std::aligned_alloc(64, rounded * sizeof(float)));
      if (data_ == nullptr) throw std::bad_alloc();
      capacity_ = rounded;
    }
    return data_;
  }

 private:
  float* data_ = nullptr;
  size_t capacity_ = 0;
};

}  // namespace bireme
