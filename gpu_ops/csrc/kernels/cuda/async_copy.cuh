// Copies to shared memory in the background, for threads that read what they have copied themselves.
#pragma once
#include "common.cuh"

namespace bireme {

// 16 bytes that nobody else on the multiprocessor wants: they pass by the first cache, and their line's other half follows.
__device__ inline void copy_once(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from)
               : "memory");
}

__device__ inline void end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until at most the last kPending groups of this thread's copies are under way.
template <int kPending>
__device__ inline void wait_groups() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace bireme
