// The process's one pool of compute threads: no Paddle headers.
#pragma once
#include <algorithm>
#include <cstdint>

namespace bireme {

// Sets how many threads compute, the calling one included (>= 1), and how long an idle helper spins for its next work
// before it sleeps. Waits for running work to finish.
void set_num_threads(int threads, int spin_microseconds);
int num_threads();

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
