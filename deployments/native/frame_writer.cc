// Bytes to sockets from a thread of its own, which takes no interpreter lock: a write to a socket is a system call, and Python's
// event loops make it with the lock held, so that an engine's thread waits for it.
//
// Called through ctypes with the interpreter lock held (frame_writer.py): nothing here waits for a socket while it holds the mutex.

#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

namespace {

struct Connection {
  int fd;  // -1 once it is closed
  std::string unsent;   // what the thread has not taken yet
  int64_t queued = 0;   // bytes that the kernel has not taken
  bool closing = false;  // ends once everything is written
  std::atomic<bool> broken{false};  // the other side has gone, or nothing more is wanted there
  bool listed = false;   // stands in `ready`
};

using ConnectionPtr = std::shared_ptr<Connection>;

class Writer {
 public:
  Writer() { std::thread([this] { run(); }).detach(); }

  int64_t open(int fd) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto connection = std::make_shared<Connection>();
    connection->fd = fd;
    connections_[++last_id_] = std::move(connection);
    return last_id_;
  }

  int64_t send(int64_t id, const char* data, int64_t size) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = connections_.find(id);
    if (found == connections_.end()) return -1;
    Connection& connection = *found->second;
    if (connection.broken || connection.closing) return -1;
    connection.unsent.append(data, size);
    connection.queued += size;
    list(found->second);
    return connection.queued;
  }

  // To wake a thread is dearer than all else here, so what is sent together is flushed once.
  void flush() {
    if (is_asleep_) wake_.notify_one();
  }

  void close(int64_t id, bool at_once) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      auto found = connections_.find(id);
      if (found == connections_.end()) return;
      found->second->closing = true;
      if (at_once) found->second->broken = true;
      list(found->second);
      connections_.erase(found);
    }
    wake_.notify_one();
  }

 private:
  // One whose other side does not read; it is tried again when there is room.
  struct Blocked {
    ConnectionPtr connection;
    std::string rest;
    size_t at;
  };

  void list(const ConnectionPtr& connection) {
    if (!connection->listed) {
      connection->listed = true;
      ready_.push_back(connection);
    }
  }

  // Writes what it can of `rest`; false if some is left because the other side does not read.
  static bool write(Connection& connection, const std::string& rest, size_t& at) {
    while (at < rest.size() && !connection.broken) {
      const ssize_t written = ::send(connection.fd, rest.data() + at, rest.size() - at, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (written >= 0) {
        at += written;
      } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
        return false;
      } else if (errno != EINTR) {
        connection.broken = true;
      }
    }
    return true;
  }

  // What follows once all that was taken of a connection is written.
  void written(const ConnectionPtr& connection, size_t size) {
    bool ends;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      connection->queued -= size;
      ends = connection->closing && (connection->broken || connection->unsent.empty());
      if (!ends && !connection->unsent.empty()) list(connection);
    }
    if (ends) end(*connection);
  }

  static void end(Connection& connection) {
    if (connection.fd < 0) return;
    ::shutdown(connection.fd, SHUT_RDWR);
    ::close(connection.fd);
    connection.fd = -1;
  }

  void run() {
    std::vector<ConnectionPtr> taken;
    std::vector<Blocked> blocked, still;
    int pause_ms = kFirstPauseMs;
    while (true) {
      taken.clear();
      {
        std::unique_lock<std::mutex> lock(mutex_);
        const auto is_wanted = [this] { return !ready_.empty(); };
        is_asleep_ = !is_wanted();
        if (blocked.empty()) {
          wake_.wait(lock, is_wanted);
        } else if (!wake_.wait_for(lock, std::chrono::milliseconds(pause_ms), is_wanted)) {
          pause_ms = std::min(2 * pause_ms, kLongestPauseMs);
        }
        is_asleep_ = false;
        taken.swap(ready_);
      }
      still.clear();
      for (Blocked& one : blocked) {
        const size_t before = one.at;
        const bool is_whole = write(*one.connection, one.rest, one.at);
        if (is_whole || one.at > before) pause_ms = kFirstPauseMs;
        if (is_whole) {
          written(one.connection, one.rest.size());
        } else {
          still.push_back(std::move(one));
        }
      }
      blocked.swap(still);
      for (ConnectionPtr& connection : taken) {
        std::string rest;
        {
          std::lock_guard<std::mutex> lock(mutex_);
          connection->listed = false;
          if (is_blocked(blocked, connection)) continue;  // `written` lists it again
          rest.swap(connection->unsent);
        }
        size_t at = 0;
        if (write(*connection, rest, at)) {
          written(connection, rest.size());
        } else {
          blocked.push_back({connection, std::move(rest), at});
        }
      }
    }
  }

  static bool is_blocked(const std::vector<Blocked>& blocked, const ConnectionPtr& connection) {
    for (const Blocked& one : blocked) {
      if (one.connection == connection) return true;
    }
    return false;
  }

  static constexpr int kFirstPauseMs = 1, kLongestPauseMs = 32;

  std::mutex mutex_;
  std::condition_variable wake_;
  std::unordered_map<int64_t, ConnectionPtr> connections_;
  std::vector<ConnectionPtr> ready_;
  int64_t last_id_ = 0;
  // Set and read in this order with `ready_`, under the mutex: what is sent while it is false is seen before the thread sleeps.
  std::atomic<bool> is_asleep_{false};
};

}  // namespace

extern "C" {

// Of a process; it is never deleted.
void* bireme_writer_new() { return new Writer; }

// Takes `fd`. Returns the connection's id.
int64_t bireme_writer_open(void* writer, int fd) { return static_cast<Writer*>(writer)->open(fd); }

// Returns how many bytes the kernel has not taken yet; -1 if the connection has ended. Written after the next flush, if not before.
int64_t bireme_writer_send(void* writer, int64_t id, const char* data, int64_t size) {
  return static_cast<Writer*>(writer)->send(id, data, size);
}

void bireme_writer_flush(void* writer) { static_cast<Writer*>(writer)->flush(); }

void bireme_writer_close(void* writer, int64_t id, int at_once) {
  static_cast<Writer*>(writer)->close(id, at_once != 0);
}
}
