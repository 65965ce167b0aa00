// What the machine can do at best: multiply-adds from registers, and reading memory once. The same vectors and the same kind
// of thread pool as the ops.
#include <chrono>
#include <vector>

#include "kernels/device/thread_pool.h"
#include "kernels/device/vec16.h"

namespace {

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

volatile float sink;

}  // namespace

extern "C" {

void set_num_threads(int threads) { bireme::set_num_threads(threads, 50); }

// GFLOP/s of independent multiply-add chains, as many as hide the latency.
double peak_gflops() {
  constexpr int kChains = 12, kSteps = 200000;
  const int threads = bireme::num_threads();
  const auto begin = std::chrono::steady_clock::now();
  bireme::parallel_for(4 * threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) {
      bireme::Vec16 sum[kChains];
      for (int c = 0; c < kChains; ++c) sum[c] = bireme::broadcast(0.1f * c);
      const bireme::Vec16 factor = bireme::broadcast(0.99f);
      for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 12
        for (int c = 0; c < kChains; ++c) sum[c] = bireme::fma(sum[c], factor, factor);
      }
      for (int c = 1; c < kChains; ++c) sum[0] = sum[0] + sum[c];
      sink = bireme::sum_lanes(sum[0]);
    }
  });
  return 4.0 * threads * kSteps * kChains * bireme::kLanes * 2 / seconds_since(begin) / 1e9;
}

// GB/s of one pass over data [count] floats.
double read_gbytes(const float* data, int64_t count) {
  constexpr int64_t kChunk = 16 * 1024, kStep = 4 * bireme::kLanes;
  const auto begin = std::chrono::steady_clock::now();
  bireme::parallel_for(count / kChunk, 4, [&](int64_t first, int64_t last) {
    bireme::Vec16 sum[4] = {bireme::zero(), bireme::zero(), bireme::zero(), bireme::zero()};
    for (const float* p = data + first * kChunk; p < data + last * kChunk; p += kStep) {
      for (int v = 0; v < 4; ++v) sum[v] = sum[v] + bireme::load(p + v * bireme::kLanes);
    }
    sink = bireme::sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3]));
  });
  return count * sizeof(float) / seconds_since(begin) / 1e9;
}

}  // extern "C"
