// Launches that overlap with the end of the kernel before them: programmatic dependent launch, from compute capability 9.0 on
// (CUDA programming guide). Earlier devices run such kernels one after the other.
//
// The rule that makes it safe: every block calls `wait_for_predecessor` before it reads what another kernel writes and before it
// writes anything, so that the end of a kernel means the end of all before it. `start_successor` comes after the wait: at most two
// neighbours overlap, and before the wait a kernel may read constants (weights) and whatever the last kernel but one has written.
// Matmuls of small layers alone call it at once, so that the weights of several come together; what follows a row of those may,
// before its wait, count on the kernels before the one ahead of the row.
#pragma once
#include "kernels/device/cuda/common.cuh"

namespace bireme {

__device__ inline void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ inline void start_successor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Whether the current device overlaps neighbouring kernels.
inline bool chains_launches() {
  static const bool capable = [] {
    int major = 0;
    return cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, current_device()) == cudaSuccess && major >= 9;
  }();
  return capable;
}

template <typename... Parameters, typename... Arguments>
void launch_chained(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes, Stream stream, const char* what,
                    const Arguments&... arguments) {
  cudaLaunchAttribute chained{};
  chained.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  chained.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &chained;
  config.numAttrs = chains_launches() ? 1 : 0;
  check_cuda(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), what);
}

}  // namespace bireme
