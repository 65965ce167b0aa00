// Host flags and host-side events: no Paddle headers.
#pragma once
#include <cstdint>

namespace bireme {

// A step's completion on the CPU "device stream": the worker records, the host waits. `ticket` grows by one a step.
void event_record_cpu(int64_t* cell, int64_t ticket);
// Blocks until the cell holds `ticket` or more. Never touches Python, so the interpreter lock is free while it waits.
void event_wait_cpu(const int64_t* cell, int64_t ticket);

}  // namespace bireme
