#include "kernels/device/cuda/events.h"

#include <condition_variable>
#include <map>
#include <mutex>

#include "kernels/device/cuda/common.cuh"

namespace bireme {
namespace {

// One event a cell, reused from step to step: an event that was recorded again stands for a later ticket, and waiting for
// that one is waiting for the earlier ones too.
struct CellEvent {
  cudaEvent_t event = nullptr;
  int64_t ticket = 0;
};

std::mutex mutex;
std::condition_variable recorded;
std::map<const int64_t*, CellEvent>& cells() {
  static std::map<const int64_t*, CellEvent> all;
  return all;
}

}  // namespace

int current_device() {
  int device = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  return device;
}

void event_record_cuda(const int64_t* cell, int64_t ticket, Stream stream) {
  {
    const std::lock_guard<std::mutex> lock(mutex);
    CellEvent& entry = cells()[cell];
    if (!entry.event) check_cuda(cudaEventCreateWithFlags(&entry.event, cudaEventDisableTiming), "cudaEventCreate");
    check_cuda(cudaEventRecord(entry.event, stream), "cudaEventRecord");
    entry.ticket = ticket;
  }
  recorded.notify_all();
}

void event_wait_cuda(int64_t* cell, int64_t ticket) {
  cudaEvent_t event;
  int64_t reached;
  {
    std::unique_lock<std::mutex> lock(mutex);
    if (__atomic_load_n(cell, __ATOMIC_ACQUIRE) >= ticket) return;
    recorded.wait(lock, [&] { return cells()[cell].ticket >= ticket; });
    event = cells()[cell].event;
    reached = cells()[cell].ticket;
  }
  check_cuda(cudaEventSynchronize(event), "cudaEventSynchronize");
  __atomic_store_n(cell, reached, __ATOMIC_RELEASE);
}

void copy_async_cuda(const void* from, void* to, int64_t bytes, Stream stream) {
  check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream), "copy_async");
}

}  // namespace bireme
