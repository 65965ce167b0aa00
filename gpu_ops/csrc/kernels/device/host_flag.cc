#include "kernels/device/host_flag.h"

#include <atomic>
#include <condition_variable>
#include <mutex>

namespace bireme {
namespace {
// One condition for every cell: there are two waiters at most in a process (engine loop, shutdown).
std::mutex mutex;
std::condition_variable recorded;
}  // namespace

void event_record_cpu(int64_t* cell, int64_t ticket) {
  {
    std::lock_guard<std::mutex> lock(mutex);
    __atomic_store_n(cell, ticket, __ATOMIC_RELEASE);
  }
  recorded.notify_all();
}

void event_wait_cpu(const int64_t* cell, int64_t ticket) {
  if (__atomic_load_n(cell, __ATOMIC_ACQUIRE) >= ticket) return;
  std::unique_lock<std::mutex> lock(mutex);
  recorded.wait(lock, [&] { return __atomic_load_n(cell, __ATOMIC_ACQUIRE) >= ticket; });
}

}  // namespace bireme
