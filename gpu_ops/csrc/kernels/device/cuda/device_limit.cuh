// What the current device allows.
#pragma once
#include <map>
#include <mutex>

#include "kernels/device/cuda/common.cuh"

namespace bireme {

// A limit of the current device, asked for once.
template <cudaDeviceAttr kAttribute>
int device_limit(const char* what) {
  static std::mutex mutex;
  static std::map<int, int> known;
  const int device = current_device();
  const std::lock_guard<std::mutex> lock(mutex);
  const auto [found, is_new] = known.try_emplace(device, 0);
  if (is_new) check_cuda(cudaDeviceGetAttribute(&found->second, kAttribute, device), what);
  return found->second;
}

// Shared memory that a block may have.
inline int shared_limit() { return device_limit<cudaDevAttrMaxSharedMemoryPerBlockOptin>("shared memory"); }

}  // namespace bireme
