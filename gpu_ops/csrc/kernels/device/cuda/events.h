// Events of the GPU behind the host cells of host_flag.h, and copies between host and device.
#pragma once
#include "kernels/device/cuda/device.h"

namespace bireme {

// Marks the point on `stream` at which the cell reaches `ticket`. Tickets of a cell grow, and a cell lives as long as its
// process: its address names its event. Not inside a captured graph.
void event_record_cuda(const int64_t* cell, int64_t ticket, Stream stream);

// Blocks until the cell has reached `ticket`, also when another thread has yet to record it. Touches no Python.
void event_wait_cuda(int64_t* cell, int64_t ticket);

// Enqueues a copy; one side may be pinned host memory.
void copy_async_cuda(const void* from, void* to, int64_t bytes, Stream stream);

}  // namespace bireme
