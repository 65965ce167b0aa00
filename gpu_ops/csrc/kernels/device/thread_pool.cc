#include "kernels/device/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace bireme {

// Who asks first gets the next item. Asking costs a look at one number while there is none.
class SideQueue {
 public:
  bool empty() const { return waiting_.load() == 0; }

  void add(SideWork* work) {
    std::lock_guard<std::mutex> lock(mutex_);
    works_.push_back(work);
    waiting_.fetch_add(1);
  }

  // Does one item: of `only`, or of the work that was started first. False when nobody has left one.
  bool do_one(SideWork* only = nullptr) {
    SideWork* work = nullptr;
    int64_t item = 0;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      const auto found = only == nullptr ? works_.begin() : std::find(works_.begin(), works_.end(), only);
      if (found == works_.end()) return false;
      work = *found;
      item = work->next_++;
      if (work->next_ == work->items_) {
        works_.erase(found);
        waiting_.fetch_sub(1);
      }
    }
    work->body_(work->context_, item);
    work->left_.fetch_sub(1, std::memory_order_release);
    return true;
  }

 private:
  std::mutex mutex_;
  std::vector<SideWork*> works_;
  std::atomic<int> waiting_{0};
};

namespace {

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

// A thread that lost its core in the middle of what is waited for may need this one to finish.
template <typename Done>
void wait_until(Done&& done) {
  for (int spins = 0; !done(); ++spins) spins < 4096 ? pause() : std::this_thread::yield();
}

// A job is open while helpers may join it. Its caller takes chunks like everyone else, closes it when none is left, and
// waits only for the helpers inside: one that got no core in time is not waited for.
class Pool {
 public:
  void resize(int threads, int spin_microseconds) {
    std::lock_guard<std::mutex> turn(caller_turn_);
    {
      std::lock_guard<std::mutex> lock(sleep_mutex_);
      stopping_.store(true);
    }
    wake_.notify_all();
    for (auto& helper : helpers_) helper.join();
    helpers_.clear();
    stopping_.store(false);
    spin_ = std::chrono::microseconds(spin_microseconds);
    shares_ = std::vector<Share>(threads);
    for (int i = 1; i < threads; ++i) helpers_.emplace_back([this, i] { help(i); });
    threads_.store(threads);
  }

  int threads() const { return threads_.load(std::memory_order_relaxed); }

  void run(int64_t items, int64_t grain, ParallelBody body, void* context) {
    std::unique_lock<std::mutex> turn(caller_turn_, std::defer_lock);
    if (items <= grain || threads() == 1 || !turn.try_lock()) {
      body(context, 0, items);
      return;
    }
    grain_ = grain;
    body_ = body;
    context_ = context;
    const int64_t chunks = (items + grain - 1) / grain, count = static_cast<int64_t>(shares_.size());
    for (int64_t i = 0; i < count; ++i) {
      shares_[i].next.store(chunks * i / count * grain, std::memory_order_relaxed);
      shares_[i].end = std::min(items, chunks * (i + 1) / count * grain);
    }
    const uint64_t epoch = (state_.load(std::memory_order_relaxed) / kEpoch + 1) * kEpoch;
    state_.store(epoch | kOpen);  // publishes the job
    wake_sleepers();
    take_chunks(0);
    state_.fetch_and(~kOpen);
    wait_until([&] { return (state_.load(std::memory_order_acquire) & kMembers) == 0; });
  }

  void start_side(SideWork* work) {
    side_.add(work);
    wake_sleepers();
  }

  void finish_side(SideWork* work, const std::atomic<int64_t>& left) {
    while (side_.do_one(work)) {
    }
    wait_until([&] { return left.load(std::memory_order_acquire) == 0; });
  }

 private:
  static constexpr uint64_t kMembers = 0xffff, kOpen = 1 << 16, kEpoch = 1 << 17;

  // Items of a thread, handed out from the first to the last.
  struct alignas(64) Share {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  // A thread's own share first: what it reads from memory lies one behind the other then, and is fetched ahead by who reads it.
  // Then what others have left of theirs.
  void take_chunks(size_t own) {
    for (size_t i = 0; i < shares_.size(); ++i) {
      Share& share = shares_[(own + i) % shares_.size()];
      // Reading first leaves the line of an empty share with everyone.
      while (share.next.load(std::memory_order_relaxed) < share.end) {
        const int64_t begin = share.next.fetch_add(grain_, std::memory_order_relaxed);
        if (begin >= share.end) break;
        body_(context_, begin, std::min(begin + grain_, share.end));
      }
    }
  }

  void wake_sleepers() {
    if (sleepers_.load() == 0) return;
    { std::lock_guard<std::mutex> lock(sleep_mutex_); }
    wake_.notify_all();
  }

  bool has_work(uint64_t last_epoch) const {
    const uint64_t state = state_.load();
    return ((state & kOpen) && state / kEpoch != last_epoch) || !side_.empty();
  }

  // False when the pool is stopping.
  bool await_work(uint64_t last_epoch) {
    const auto deadline = std::chrono::steady_clock::now() + spin_;
    do {
      for (int i = 0; i < 32; ++i) {
        if (has_work(last_epoch)) return true;
        pause();
      }
      if (stopping_.load(std::memory_order_relaxed)) return false;
    } while (std::chrono::steady_clock::now() < deadline);
    std::unique_lock<std::mutex> lock(sleep_mutex_);
    sleepers_.fetch_add(1);
    wake_.wait(lock, [&] { return stopping_.load() || has_work(last_epoch); });
    sleepers_.fetch_sub(1);
    return !stopping_.load();
  }

  void help(size_t own) {
    uint64_t last_epoch = 0;
    while (await_work(last_epoch)) {
      while (!side_.empty() && side_.do_one()) {
      }
      uint64_t state = state_.load();
      if (!(state & kOpen) || state / kEpoch == last_epoch) continue;
      if (!state_.compare_exchange_strong(state, state + 1)) continue;
      last_epoch = state / kEpoch;
      take_chunks(own);
      state_.fetch_sub(1, std::memory_order_release);
    }
  }

  SideQueue side_;
  std::mutex caller_turn_;  // held by the caller whose job it is
  std::vector<std::thread> helpers_;
  std::atomic<int> threads_{1};
  std::chrono::microseconds spin_{0};

  // The job; written only while none is open and no helper is inside.
  std::vector<Share> shares_{1};
  int64_t grain_ = 1;
  ParallelBody body_ = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<uint64_t> state_{0};  // epoch | open | helpers inside

  alignas(64) std::atomic<int> sleepers_{0};
  std::atomic<bool> stopping_{false};
  std::mutex sleep_mutex_;
  std::condition_variable wake_;
};

// Never destroyed: helpers may still sleep in it while the process exits.
Pool& pool() {
  static Pool* instance = new Pool;
  return *instance;
}

}  // namespace

void set_num_threads(int threads, int spin_microseconds) { pool().resize(threads, spin_microseconds); }
int num_threads() { return pool().threads(); }

void run_parallel(int64_t items, int64_t grain, ParallelBody body, void* context) {
  pool().run(items, grain, body, context);
}

void SideWork::start(int64_t items, Body body, void* context) {
  if (items <= 0) return;
  body_ = body;
  context_ = context;
  items_ = items;
  next_ = 0;
  left_.store(items);
  pool().start_side(this);
}

void SideWork::finish() {
  if (left_.load(std::memory_order_acquire) != 0) pool().finish_side(this, left_);
}

}  // namespace bireme
