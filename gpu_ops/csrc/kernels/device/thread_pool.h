// The process's one pool of compute threads: no Paddle headers.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>

namespace bireme {

// Sets how many threads compute, the calling one included (>= 1), and how long an idle helper spins for its next work
// before it sleeps. Waits for running work to finish.
void set_num_threads(int threads, int spin_microseconds);
int num_threads();

// Items of work that no op waits for yet, for helpers that have nothing to do or are about to join an op: the op's other threads
// take what such a helper would have, while a thread beside the pool would keep a core from one of them in mid-chunk, and all the
// others waiting. Belongs to who starts it, and is not touched any more once it is finished.
class SideWork {
 public:
  using Body = void (*)(void* context, int64_t item);

  // Calls body(context, item) for each of [0, items), on whatever thread, until it is finished. Does not wait. Everything that was
  // started before is finished.
  void start(int64_t items, Body body, void* context);
  // Does what nobody has begun, and waits for what others have.
  void finish();

 private:
  friend class SideQueue;
  Body body_ = nullptr;
  void* context_ = nullptr;
  int64_t items_ = 0, next_ = 0;  // the queue's lock is held
  std::atomic<int64_t> left_{0};
};

using ParallelBody = void (*)(void* context, int64_t begin, int64_t end);
void run_parallel(int64_t items, int64_t grain, ParallelBody body, void* context);

// Calls body(begin, end) over [0, items) in chunks of `grain`, each thread its own share of them and then what is left of the
// others', and returns when all are done. No more than `grain` items, a pool of one thread, or a pool that is busy for another
// caller: runs on the caller alone. What a chunk computes must not depend on who runs it.
template <typename Body>
void parallel_for(int64_t items, int64_t grain, Body&& body) {
  if (items <= 0) return;
  run_parallel(items, std::max<int64_t>(grain, 1),
               [](void* context, int64_t begin, int64_t end) { (*static_cast<Body*>(context))(begin, end); }, &body);
}

}  // namespace bireme
