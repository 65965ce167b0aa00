// Partial results live from one kernel to the next of the same launch, and launches of a stream follow each other: all of them, in
// captured graphs or not, share one piece of memory. A captured graph holds its address, so a piece that one knows is never freed.
#include <map>
#include <mutex>

#include "kernels/attention/cuda/attention.h"
#include "kernels/device/cuda/common.cuh"
#include "kernels/device/cuda/events.h"

namespace bireme {
namespace {

constexpr int64_t kGrain = 1 << 20;

struct Piece {
  float* data = nullptr;
  int64_t count = 0;
  bool is_captured = false;
};

}  // namespace

float* attention_scratch(int64_t count, Stream stream) {
  static std::mutex mutex;
  static std::map<int, Piece> pieces;
  const int device = current_device();
  const std::lock_guard<std::mutex> lock(mutex);
  Piece& piece = pieces[device];
  if (piece.count < count) {
    if (piece.data && !piece.is_captured) {
      check_cuda(cudaStreamSynchronize(stream), "attention scratch");
      check_cuda(cudaFree(piece.data), "attention scratch");
    }
    piece = {};
    count = (count + kGrain - 1) / kGrain * kGrain;
    check_cuda(cudaMalloc(reinterpret_cast<void**>(&piece.data), count * sizeof(float)), "attention scratch");
    piece.count = count;
  }
  cudaStreamCaptureStatus status;
  check_cuda(cudaStreamIsCapturing(stream, &status), "attention scratch");
  piece.is_captured |= status != cudaStreamCaptureStatusNone;
  return piece.data;
}

}  // namespace bireme
